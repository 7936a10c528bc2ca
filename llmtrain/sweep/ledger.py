"""The state of a sweep on disk: its plan, and how far each cell is. No clock decides anything."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmtrain.spec.branching import FOLDER, trunk_id
from llmtrain.spec.errors import ConfigError
from llmtrain.spec.record import RECORD_FILE, read_record
from llmtrain.spec.rundir import is_held, read_state, run_directory, write_json
from llmtrain.spec.settings import TrainConfig
from llmtrain.sweep.grid import Grid

PLAN_FILE = "sweep.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class CellStatus:
    """Where a cell stands."""

    run_id: str
    state: str
    """planned, running, stopped, failed or done."""
    reason: str | None
    val_loss: float | None


def write_sweep(directory: Path, grid: Grid) -> None:
    """Write the sweep's plan before its first cell starts; cells of earlier plans stay listed."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / PLAN_FILE
    known = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.is_file() else {}
    for cell in grid.cells:
        known[cell.run_id] = {
            "d_model": cell.config.model.d_model,
            "n_layers": cell.config.model.n_layers,
            "budget": cell.config.budget.flops,
            "seed": cell.config.seed,
            "n_params": cell.plan.params["no_input_embedding"],
            "n_tokens": cell.plan.n_tokens,
            "flops": cell.plan.flops[cell.config.budget.convention],
            "flops_spent": cell.spent,
            "trunk": trunk_id(cell.config),
        }
    refused = [
        {"shape": f"w{r.d_model}d{r.n_layers}", "budget": r.budget, "reason": r.reason}
        for r in grid.refused
    ]
    totals = {
        key: sum(cell.get(key, 0.0) for cell in known.values()) for key in ("flops", "flops_spent")
    }
    write_json(path, {"cells": known, "refused": refused, **totals})


def is_done(directory: Path) -> bool:
    """Return whether a run's directory holds its record."""
    return (directory / RECORD_FILE).is_file()


def release_branches(configs: Sequence[TrainConfig]) -> None:
    """Remove the states kept by every trunk whose branches among `configs` are all done."""
    needless: dict[Path, bool] = {}
    for config in configs:
        if config.checkpoint.branch_from is None:
            continue
        own = run_directory(config)
        folder = own.parent / str(config.checkpoint.branch_from) / FOLDER
        needless[folder] = needless.get(folder, True) and is_done(own)
    for folder in (path for path, unused in needless.items() if unused):
        shutil.rmtree(folder, ignore_errors=True)


def read_sweep(directory: Path) -> list[CellStatus]:
    """Return the status of every cell of a sweep, planned or found, in the plan's order.

    Raises ConfigError where there is no such sweep.
    """
    if not directory.is_dir():
        raise ConfigError(f"runs={directory} does not exist; name a folder under runs/")
    names: list[str] = []
    path = directory / PLAN_FILE
    if path.is_file():
        names = list(json.loads(path.read_text(encoding="utf-8"))["cells"])
    found = sorted(p.parent.name for p in directory.glob("*/config.json"))
    return [_status(directory / name) for name in dict.fromkeys([*names, *found])]


def _status(directory: Path) -> CellStatus:
    record = read_record(directory)
    if record is not None:
        state, reason, loss = "done", None, record.val_loss
    else:
        state, reason = read_state(directory)
        loss = None
        if state in ("running", "done") and not is_held(directory):
            state, reason = "stopped", "run the sweep again to go on"
    return CellStatus(run_id=directory.name, state=state, reason=reason, val_loss=loss)
