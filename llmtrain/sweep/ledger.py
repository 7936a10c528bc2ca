"""The state of a sweep on disk: its plan, and how far each cell is. No clock decides anything."""

import contextlib
import dataclasses
import fcntl
import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain.spec.branching import FOLDER, trunk_id
from llmtrain.spec.disk import make_folder, write_whole, writing
from llmtrain.spec.errors import ConfigError, MismatchError, RunLockedError
from llmtrain.spec.jsonfile import read_json
from llmtrain.spec.plan import run_id
from llmtrain.spec.record import RECORD_FILE, Spent, read_record
from llmtrain.spec.rundir import (
    PASSED_BY,
    STATE_FILE,
    hold,
    read_state,
    run_directory,
    standing,
    why_not_ours,
    write_json,
    write_state,
)
from llmtrain.spec.settings import TrainConfig
from llmtrain.spec.silence import STACK_FILE
from llmtrain.sweep.grid import Cell, Grid
from llmtrain.sweep.process import Outcome

PLAN_FILE = "sweep.json"
FAILURES_FILE = "failures.json"
METRICS_FILE = "metrics.jsonl"
STATES = (
    "planned", "running", "trained", "evaluated", "stopped", "done", "failed", "quarantined",
)  # fmt: skip
QUARANTINE_AFTER = 2  # failures in the same way
TAIL_BYTES = 4096  # of the metrics, more than a row


@dataclass(frozen=True, kw_only=True, slots=True)
class CellStatus:
    """Where a cell stands."""

    run_id: str
    state: str
    """One of STATES; stopped: begun, and no process is at it."""
    reason: str | None
    val_loss: float | None
    facts: dict[str, Any]
    """The cell's entry in the plan: shape, budget, seed, n_params, n_tokens, flops."""
    flops_done: float
    """Training FLOPs so far: as the metrics say, or what the run itself spent in all."""
    seconds: float | None
    """Wall seconds of a finished cell, all its parts."""
    latest: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Last row of training metrics of a cell that is not finished."""

    @property
    def title(self) -> str:
        """Its run id and, in a product of overrides, what tells it from others of its shape."""
        return "  ".join([self.run_id, *self.facts.get("varied", ())])


def write_sweep(directory: Path, grids: Sequence[Grid]) -> None:
    """Write the sweep's plan before its first cell starts; cells of earlier plans stay listed."""
    make_folder(directory)
    refused = [
        {"shape": f"w{r.d_model}d{r.n_layers}", "budget": r.budget, "reason": r.reason}
        for grid in grids
        for r in grid.refused
    ]
    with alone(directory):
        known = _planned(directory)
        for cell in (cell for grid in grids for cell in grid.cells):
            known[cell.run_id] = known.get(cell.run_id, {}) | facts(cell)
        totals = {
            key: sum(cell.get(key, 0.0) for cell in known.values())
            for key in ("flops", "flops_spent")
        }
        write_json(directory / PLAN_FILE, {"cells": known, "refused": refused, **totals})


def is_done(directory: Path) -> bool:
    """Return whether a run's directory holds its record, and is not another user's."""
    return (directory / RECORD_FILE).is_file() and why_not_ours(directory) is None


def release_branches(configs: Sequence[TrainConfig]) -> None:
    """Remove the states of every trunk that is done, as all its planned branches are."""
    for trunk in {
        run_directory(config).with_name(config.checkpoint.branch_from)
        for config in configs
        if config.checkpoint.branch_from is not None
    }:
        mine = {c.checkpoint.branch_from: c for c in configs}[trunk.name]
        planned = _planned(trunk.parent)
        names = {name for name, cell in planned.items() if cell.get("trunk") == trunk_id(mine)}
        names |= {run_id(c) for c in configs if c.checkpoint.branch_from == trunk.name}
        if all(is_done(trunk.with_name(name)) for name in (trunk.name, *names)):
            shutil.rmtree(trunk / FOLDER, ignore_errors=True)


def is_passed_by(directory: Path) -> bool:
    """Return whether a cell has failed and waits for someone to have it tried again."""
    return not is_done(directory) and read_state(directory)[0] in PASSED_BY


def note_failure(directory: Path, outcome: Outcome, spent: Spent | None = None) -> None:
    """Record why a cell failed; the second time in the same way it is quarantined.

    `spent`: where its worker could not say it any more.
    """
    with contextlib.suppress(RunLockedError, MismatchError), hold(directory):
        failures = [*_failures(directory), {"way": outcome.way, "reason": outcome.error}]
        write_json(directory / FAILURES_FILE, failures)
        if outcome.stack is not None:
            write_whole(directory / STACK_FILE, outcome.stack)
        same = sum(failure["way"] == outcome.way for failure in failures)
        state = "quarantined" if same >= QUARANTINE_AFTER else "failed"
        write_state(directory, state, outcome.error, spent)


def reopen(configs: Sequence[TrainConfig], *, quarantined: bool = False) -> None:
    """Let the cells that failed be tried again, and the quarantined ones only where asked for."""
    states = PASSED_BY if quarantined else ("failed",)
    for directory in map(run_directory, configs):
        if not is_done(directory) and read_state(directory)[0] in states:
            with contextlib.suppress(RunLockedError, MismatchError), hold(directory):
                if quarantined:
                    (directory / FAILURES_FILE).unlink(missing_ok=True)
                write_state(directory, "planned")


def read_sweep(directory: Path, names: Collection[str] | None = None) -> list[CellStatus]:
    """Return the status of every cell of a sweep, planned or found, in the plan's order.

    `names`: of these cells only. Raises ConfigError where there is no such sweep.
    """
    if not directory.is_dir():
        raise ConfigError(f"runs={directory} does not exist; name a folder under runs/")
    planned = _planned(directory)
    if names is not None:
        return [cell_status(directory / name, planned.get(name, {})) for name in names]
    files = [*directory.glob("*/config.json"), *directory.glob(f"*/{STATE_FILE}")]
    found = sorted({path.parent.name for path in files})
    return [
        cell_status(directory / name, planned.get(name, {}))
        for name in dict.fromkeys([*planned, *found])
    ]


def cell_status(directory: Path, facts: dict[str, Any]) -> CellStatus:
    """Return the status of one cell; `facts`: its entry in the plan, or nothing."""
    try:
        record = read_record(directory)
    except MismatchError as error:
        return CellStatus(
            run_id=directory.name,
            state="failed",
            reason=str(error),
            val_loss=None,
            facts=facts,
            flops_done=0.0,
            seconds=None,
        )
    if record is not None:
        return CellStatus(
            run_id=directory.name,
            state="done",
            reason=None,
            val_loss=record.val_loss,
            facts=facts,
            flops_done=record.flops_spent,
            seconds=sum(record.seconds.values()),
        )
    state, reason = standing(directory)
    rows = _last_rows(directory / METRICS_FILE)
    return CellStatus(
        run_id=directory.name,
        state=state,
        reason=reason,
        val_loss=None,
        facts=facts,
        flops_done=float(rows[-1]["flops"]) if rows else 0.0,
        seconds=None,
        latest=next((row for row in reversed(rows) if "train/loss" in row), {}),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeLeft:
    """How long a sweep will take from here, and what that rests on."""

    seconds: float
    flops_left: float
    seconds_per_flop: float
    n_finished: int
    n_slots: int
    """Cells at work now, or slots that would be."""
    at_work: bool


def time_left(cells: Sequence[CellStatus], n_slots: int) -> TimeLeft | None:
    """Return the FLOPs left times the seconds per FLOP of the finished cells, over the slots.

    The cells at work now are the slots, or `n_slots` where none is. None where nothing is left, or
    nothing has finished yet, or the plan does not say what the cells cost.
    """
    finished = [cell for cell in cells if cell.seconds is not None and cell.flops_done > 0]
    open_cells = [cell for cell in cells if cell.state not in ("done", *PASSED_BY)]
    if not finished or not open_cells or any("flops" not in cell.facts for cell in open_cells):
        return None
    rate = sum(cell.seconds or 0.0 for cell in finished) / sum(c.flops_done for c in finished)
    left = sum(map(flops_left, open_cells))
    at_work = sum(cell.state in ("running", "trained", "evaluated") for cell in open_cells)
    slots = min(at_work or n_slots, len(open_cells))
    return TimeLeft(
        seconds=left * rate / slots,
        flops_left=left,
        seconds_per_flop=rate,
        n_finished=len(finished),
        n_slots=slots,
        at_work=at_work > 0,
    )


def flops_of(cell: CellStatus) -> float:
    """Return the FLOPs that a cell spends itself, as planned; 0 where the plan does not know it."""
    return float(cell.facts.get("flops_spent", cell.facts.get("flops", 0.0)))


def flops_left(cell: CellStatus) -> float:
    """Return the FLOPs that a cell still has to spend; a branch begins behind its trunk's."""
    whole = float(cell.facts["flops"])
    return min(flops_of(cell), max(0.0, whole - cell.flops_done))


def facts(cell: Cell) -> dict[str, Any]:
    """Return a cell's entry in the plan."""
    varied = {"varied": list(cell.varied)} if cell.varied else {}
    return varied | {
        "d_model": cell.config.model.d_model,
        "n_layers": cell.config.model.n_layers,
        "budget": cell.config.budget.flops,
        "seed": cell.config.seed,
        "lr_multiplier": cell.config.recipe.lr_multiplier,
        "n_params": cell.plan.params["no_input_embedding"],
        "n_tokens": cell.plan.n_tokens,
        "flops": cell.plan.flops[cell.config.budget.convention],
        "flops_spent": cell.spent,
        "trunk": trunk_id(cell.config),
    }


def _planned(directory: Path) -> dict[str, Any]:
    path = directory / PLAN_FILE
    return dict(read_json(path)["cells"]) if path.is_file() else {}


def _failures(directory: Path) -> list[dict[str, Any]]:
    path = directory / FAILURES_FILE
    return list(read_json(path)) if path.is_file() else []


def _last_rows(path: Path) -> list[dict[str, float]]:
    """Return the last whole rows of a metrics file; none where there is none, or it is damaged."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        start = max(0, path.stat().st_size - TAIL_BYTES)
        file.seek(start)
        lines = file.read().splitlines(keepends=True)
    whole = [line for line in lines[start > 0 :] if line.endswith(b"\n")]
    try:
        rows = [json.loads(line) for line in whole]
        return [row | {"flops": float(row["flops"])} for row in rows]
    except (ValueError, KeyError, TypeError):
        return []


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Keep other drivers of a sweep from writing its files at the same time."""
    path = directory / f".{PLAN_FILE}.lock"
    with writing(path):
        file = path.open("a", encoding="utf-8")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
