"""The states that branches start from: kept by a trunk, taken by its branches."""

import json
from pathlib import Path
from typing import Any

from llmtrain.spec.branching import FOLDER, branch_checkpoint, branch_step, prefix_id
from llmtrain.spec.check import check
from llmtrain.spec.errors import CheckpointError, RunLockedError
from llmtrain.spec.plan import RunPlan
from llmtrain.spec.record import RECORD_FILE
from llmtrain.spec.rundir import is_held, read_state
from llmtrain.spec.settings import TrainConfig
from llmtrain.training.checkpoint import is_sound, read_checkpoint, save_checkpoint
from llmtrain.training.runtime import warn
from llmtrain.training.tracking import METRICS_FILE


def check_branches(config: TrainConfig, plan: RunPlan) -> None:
    """Refuse a trunk whose branches would leave it in its cooldown. Raises ConfigError."""
    for step in config.checkpoint.branch_at:
        last = branch_step(config, plan)
        check(
            step <= last,
            f"checkpoint.branch_at={step} lies in the cooldown, which begins after step {last}; "
            "branches leave a trunk at its constant rate",
        )


def keep_state(
    directory: Path, config: TrainConfig, plan: RunPlan, data_id: str, state: dict[str, Any]
) -> None:
    """Save a session's state in the trunk's `directory` for the branches that start at its step.

    Ordinary retention does not touch it, and a trunk that comes by again leaves it as it is.
    """
    step = state["step"]
    owner = prefix_id(config, plan, step, data_id)
    folder = directory / FOLDER
    if is_sound(folder / f"step-{step:09d}", run_id=owner):
        return
    rows = (directory / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    whole = {"session": state, "rows": [list(json.loads(row).items()) for row in rows]}
    save_checkpoint(folder, run_id=owner, step=step, state=whole, keep=None)


def starting_state(
    config: TrainConfig, plan: RunPlan, data_id: str
) -> tuple[dict[str, Any], list[dict[str, float]]] | None:
    """Return the session's state and the metrics rows at the step where a branch leaves its trunk.

    None where the trunk is done and kept no such state: the run then trains all of it, which gives
    the same result. Raises MismatchError for a state of another prefix, CheckpointError for a
    damaged one and for a trunk that failed or was never begun, RunLockedError where another process
    is at the trunk.
    """
    path = branch_checkpoint(config, plan)
    if path.is_dir():
        owner = prefix_id(config, plan, branch_step(config, plan), data_id)
        state = read_checkpoint(path, run_id=owner)
        return state["session"], [dict(row) for row in state["rows"]]
    trunk = path.parents[1]
    if (trunk / RECORD_FILE).is_file():
        warn(f"{trunk.name} is done and kept no {path.name}; this run trains its prefix too")
        return None
    found, reason = read_state(trunk)
    if found in ("failed", "quarantined"):
        raise CheckpointError(f"its trunk {trunk.name} {found}: {reason}; run the sweep again")
    if is_held(trunk):
        raise RunLockedError(f"waits for {path.name} of its trunk {trunk.name}")
    raise CheckpointError(f"its trunk {trunk.name} is not trained; train that one first")
