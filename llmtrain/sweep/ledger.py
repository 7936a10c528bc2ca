"""The state of a sweep on disk: its plan, and how far each cell is. No clock decides anything."""

from dataclasses import dataclass
from pathlib import Path

from llmtrain.spec.errors import ConfigError
from llmtrain.spec.jsonfile import read_json
from llmtrain.spec.record import RECORD_FILE, read_record
from llmtrain.spec.rundir import is_held, read_state, why_not_ours, write_json
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
    known = read_json(path)["cells"] if path.is_file() else {}
    for cell in grid.cells:
        known[cell.run_id] = {
            "d_model": cell.config.model.d_model,
            "n_layers": cell.config.model.n_layers,
            "budget": cell.config.budget.flops,
            "seed": cell.config.seed,
            "n_params": cell.plan.params["no_input_embedding"],
            "n_tokens": cell.plan.n_tokens,
        }
    refused = [
        {"shape": f"w{r.d_model}d{r.n_layers}", "budget": r.budget, "reason": r.reason}
        for r in grid.refused
    ]
    write_json(path, {"cells": known, "refused": refused})


def is_done(directory: Path) -> bool:
    """Return whether a run's directory holds its record, and is not another user's."""
    return (directory / RECORD_FILE).is_file() and why_not_ours(directory) is None


def read_sweep(directory: Path) -> list[CellStatus]:
    """Return the status of every cell of a sweep, planned or found, in the plan's order.

    Raises ConfigError where there is no such sweep.
    """
    if not directory.is_dir():
        raise ConfigError(f"runs={directory} does not exist; name a folder under runs/")
    names: list[str] = []
    path = directory / PLAN_FILE
    if path.is_file():
        names = list(read_json(path)["cells"])
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
