"""The Hydra launcher `slurm`: one array of tasks that drain the sweep's cells together."""

import contextlib
import dataclasses
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmtrain.spec.errors import ConfigError
from llmtrain.spec.rundir import run_directory
from llmtrain.spec.settings import TrainConfig
from llmtrain.sweep.drain import refuse_sweep_room, write_cells
from llmtrain.sweep.launcher import HANDS, CellLauncher, RunConfigs, check_hang_limit, elsewhere
from llmtrain.sweep.ledger import is_done, is_passed_by, reopen
from llmtrain.sweep.pool import make_slots
from llmtrain.sweep.process import Outcome, Slot

LOGS = "slurm"
SCONTROL_S = 60.0


class SlurmLauncher(CellLauncher):
    """Submits one array whose tasks drain the cells from the shared folder, and returns at once."""

    def __init__(
        self,
        *,
        n_tasks: int,
        array_parallelism: int,
        partition: str | None,
        timeout_min: int,
        gpus_per_task: int | None,
        cpus_per_task: int,
        mem_gb: float | None,
        per_device: int,
        hang_seconds: float | None,
        signal_delay_s: int,
        max_requeues: int,
        extra: Mapping[str, Any],
    ) -> None:
        if n_tasks < 1:
            raise ConfigError(f"hydra.launcher.n_tasks={n_tasks} must be at least 1")
        check_hang_limit(hang_seconds)
        self.n_tasks, self.per_device, self.max_requeues = n_tasks, per_device, max_requeues
        self.hang_seconds = hang_seconds
        wanted = {
            "timeout_min": timeout_min,
            "cpus_per_task": cpus_per_task,
            # From 22.05 on srun no longer takes this over from sbatch, and would bind to one core.
            "slurm_srun_args": [f"--cpus-per-task={cpus_per_task}"],
            "mem_gb": mem_gb,
            "slurm_partition": partition,
            "slurm_gpus_per_task": gpus_per_task,
            "slurm_array_parallelism": array_parallelism,
            "slurm_signal_delay_s": signal_delay_s,
            "slurm_additional_parameters": {k: v for k, v in extra.items() if v is not None},
        }
        self.parameters = {key: value for key, value in wanted.items() if value is not None}

    def opened(self) -> contextlib.AbstractContextManager[RunConfigs]:
        """Return `run_cells`; nothing is kept between calls."""
        return contextlib.nullcontext(self._submit)

    def _submit(self, configs: Sequence[TrainConfig]) -> list[Outcome | None]:
        """Submit the cells that are neither done nor in quarantine.

        Nothing is known of them when this returns.
        """
        reopen(configs)
        folders = {run_directory(config): config for config in configs}
        to_do = [c for path, c in folders.items() if not (is_done(path) or is_passed_by(path))]
        if not to_do:
            HANDS.watcher.opened([], sum(map(is_done, folders)), 0, list(folders))
            HANDS.watcher.closed()
            return [elsewhere(config) for config in configs]
        refuse_sweep_room(to_do, at_once=self.n_tasks * self.per_device)
        executor = make_executor(Path(to_do[0].runs_root) / to_do[0].name / LOGS)
        executor.update_parameters(name=to_do[0].name, **self.parameters)
        cells = write_cells(to_do)
        command = (
            *HANDS.drain,
            f"cells={cells}",
            f"per_device={self.per_device}",
            f"max_requeues={self.max_requeues}",
            *([] if self.hang_seconds is None else [f"hang_seconds={self.hang_seconds}"]),
        )
        n_tasks = min(self.n_tasks, len(to_do))
        jobs = executor.map_array(become, [command] * n_tasks)
        HANDS.watcher.submitted(jobs[0].job_id.partition("_")[0], len(to_do), n_tasks, cells.parent)
        return [elsewhere(config) for config in configs]


def make_executor(folder: Path) -> Any:
    """Return submitit's executor with its files in `folder`. Raises ConfigError."""
    try:
        import submitit  # noqa: PLC0415 - an extra: only this launcher needs it
    except ImportError as error:
        raise ConfigError(
            "hydra/launcher=slurm needs submitit; pip install -e '.[slurm]'"
        ) from error
    try:
        return submitit.AutoExecutor(folder=folder, cluster="slurm")
    except RuntimeError as error:
        raise ConfigError(f"no SLURM here: {error}; use hydra/launcher=pool") from error


def become(command: Sequence[str]) -> None:
    """Replace this process, submitit's in a task, by the command.

    Then one program alone hears the signals; submitit's own would end while ours is still saving.
    """
    sys.stdout.flush()
    os.execv(command[0], list(command))


def task_slots(per_device: int) -> list[Slot]:
    """Return the slots of this process: those of the machine, or of its share in a SLURM task."""
    slots = make_slots(per_device)
    cores = sorted(os.sched_getaffinity(0))
    given = int(os.environ.get("SLURM_CPUS_PER_TASK", len(cores)))
    if slots[0].gpu is not None or given >= len(cores):
        return slots
    # This SLURM does not bind tasks to cores: keep to our number of them, each task to others.
    first = given * int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    mine = [cores[(first + i) % len(cores)] for i in range(given)]
    return [
        dataclasses.replace(slots[i % len(slots)], index=i, cores=(mine[i % given],))
        for i in range(given * per_device)
    ]


def may_requeue(max_requeues: int) -> bool:
    """Return whether this process is a SLURM task that should go back to the queue.

    It should not once it has been there `max_requeues` times, nor where SLURM no longer has the job
    as running: then it was cancelled, or SLURM is requeuing it itself.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or int(os.environ.get("SLURM_RESTART_COUNT", "0")) >= max_requeues:
        return False
    return "JobState=RUNNING" in _scontrol("show", "job", "--oneliner", job)


def requeue() -> None:
    """Have SLURM start this task again later; SLURM ends the process, often before this returns."""
    _scontrol("requeue", os.environ["SLURM_JOB_ID"])


def _scontrol(*arguments: str) -> str:
    """Return what scontrol says; nothing where it is absent or silent, as within a container."""
    command = ["scontrol", *arguments]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=SCONTROL_S
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
