"""What runs will take of a disk, and whether it is there: asked before their first step.

A checkpoint holds 4 bytes per parameter, the optimizer's moments (spec/memory.py), a name and a
shape for each tensor, and the losses since the last row of metrics. A run that is done leaves
`checkpoint.keep` of them, a branch state per step of `checkpoint.branch_at`, and its logs; one
under way needs room for one checkpoint more: the oldest goes when the newest is whole.
"""

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from llmtrain.spec.branching import Planned
from llmtrain.spec.disk import make_folder, writing
from llmtrain.spec.errors import DiskError
from llmtrain.spec.memory import memory_bytes
from llmtrain.spec.plan import RunPlan
from llmtrain.spec.rundir import run_directory
from llmtrain.spec.settings import TrainConfig

MARGIN = 1.5
"""Other programs write too."""
LAYER_NAMES = 4400
"""Bytes of names, shapes and offsets of a layer's tensors and moments; biases double them."""
LOSS_BYTES = 120
"""Of a loss that waits for its row."""
ROW_BYTES = 1024
"""Of a row of metrics with wandb's copy of it."""
FACTS_BYTES = 2**16
"""config.json, plan.json, origins.json, record.json and their like."""
PROBE = bytes(2**16)


def checkpoint_bytes(config: TrainConfig, plan: RunPlan) -> int:
    """Return the size of one checkpoint of a run."""
    memory = memory_bytes(config, plan)
    names = LAYER_NAMES * (config.model.n_layers + 1) * (2 if config.model.bias else 1)
    losses = LOSS_BYTES * max(1, plan.n_steps // config.tracking.points)
    return memory.parameters + memory.optimizer + names + losses


def bytes_left_behind(config: TrainConfig, plan: RunPlan) -> int:
    """Return what a finished run has on the disk, at most."""
    points = min(plan.n_steps, 2 * config.tracking.points) + 2 * config.evaluation.points
    logs = ROW_BYTES * points + FACTS_BYTES
    branches = len(config.checkpoint.branch_at)
    n_states = config.checkpoint.keep + branches
    return n_states * checkpoint_bytes(config, plan) + (branches + 1) * logs


def bytes_needed(runs: Sequence[Planned], *, at_once: int) -> int:
    """Return what `runs` take, `at_once` of them at a time."""
    saving = sorted((checkpoint_bytes(*run) for run in runs), reverse=True)[:at_once]
    return sum(bytes_left_behind(*run) for run in runs) + sum(saving)


def refuse_room(folder: Path, runs: Sequence[Planned], *, at_once: int = 1) -> None:
    """Raise DiskError unless `folder` can be written and has MARGIN times what `runs` need.

    What an earlier start of theirs has written counts as free.
    """
    make_folder(folder)
    _probe(folder)
    need = bytes_needed(runs, at_once=at_once)
    have = shutil.disk_usage(folder).free + sum(_held(run_directory(c)) for c, _ in runs)
    if have < MARGIN * need:
        what = "this run" if len(runs) == 1 else f"these {len(runs)} runs"
        raise DiskError(
            f"{folder}: disk too full: {_shown(have)} free, less than {MARGIN:g} times the "
            f"{_shown(need)} that {what} may need; free space, lower checkpoint.keep or choose "
            "another runs_root"
        )


def _probe(folder: Path) -> None:
    path = folder / f".probe-{os.getpid()}"
    with writing(folder):
        try:
            with path.open("wb", buffering=0) as file:
                file.write(PROBE)
                os.fsync(file.fileno())
        finally:
            path.unlink(missing_ok=True)


def _held(directory: Path) -> int:
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # its run may be under way elsewhere
                total += (Path(folder) / name).lstat().st_size
    return total


def _shown(n_bytes: float) -> str:
    unit, name = (1e9, "GB") if n_bytes >= 1e9 else (1e6, "MB")
    return f"{n_bytes / unit:.3g} {name}"
