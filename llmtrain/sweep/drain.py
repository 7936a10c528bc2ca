"""Cells in a file on a shared folder, and any number of machines that work them off together."""

import contextlib
import dataclasses
import functools
import hashlib
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from llmtrain.spec.build import build
from llmtrain.spec.errors import ConfigError, InterruptedRunError, RunLockedError
from llmtrain.spec.jsonfile import read_json
from llmtrain.spec.plan import run_id
from llmtrain.spec.rundir import (
    hold,
    is_held,
    read_state,
    run_directory,
    write_json,
    write_state,
)
from llmtrain.spec.settings import TrainConfig
from llmtrain.sweep.launcher import SweepWatcher, cell_job
from llmtrain.sweep.ledger import is_done
from llmtrain.sweep.pool import Job, Outcome, Report, Slot, Work, run_jobs

# What schedulers send before they take a machine away: submitit asks SLURM for USR2, other sites
# send USR1, HUP or TERM.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
KILLED_BY_STOP = tuple(f"killed by {number.name}" for number in STOP_SIGNALS)


class TakenError(RunLockedError):
    """The cell belongs to another process, or another process has finished with it."""


def write_cells(configs: Sequence[TrainConfig]) -> Path:
    """Write the cells into the folder of their sweep and return the file, named by its content."""
    cells = [dataclasses.asdict(config) for config in configs]
    digest = hashlib.sha256("".join(sorted(run_id(c) for c in configs)).encode()).hexdigest()
    directory = Path(configs[0].runs_root) / configs[0].name
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"cells-{digest[:8]}.json"
    write_json(path, {"cells": cells})
    return path


def read_cells(path: Path) -> list[TrainConfig]:
    """Return the configurations in a file of cells. Raises ConfigError."""
    try:
        cells = read_json(path)["cells"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"cells={path} is no file of cells ({error}); hydra/launcher=slurm writes one"
        ) from error
    return [build(TrainConfig, cell) for cell in cells]


def reopen(configs: Sequence[TrainConfig]) -> None:
    """Let the cells that failed be tried again: whoever drains leaves failed ones alone."""
    for config in configs:
        directory = run_directory(config)
        if read_state(directory)[0] == "failed":
            with contextlib.suppress(RunLockedError), hold(directory):
                write_state(directory, "planned")


def drain(
    configs: Sequence[TrainConfig], work: Work, slots: Sequence[Slot], watcher: SweepWatcher
) -> list[Outcome]:
    """Train every cell that is neither done, nor failed, nor held by another process.

    Returns the outcomes of the cells that ended here, failures among them. Any of STOP_SIGNALS
    makes the workers save and raises InterruptedRunError.
    """
    jobs = {run_directory(config): cell_job(config) for config in configs}
    recorder = _Recorder({job.name: path for path, job in jobs.items()}, watcher)
    done_before = sum(is_done(path) for path in jobs)
    first = _open_cells(jobs, recorder)
    watcher.opened(first, done_before, len(slots))
    try:
        with _on_stop_signals(_stop_the_pool):
            # A second look takes up what another process held in the first and then gave back.
            while cells := _open_cells(jobs, recorder):
                run_jobs(cells, functools.partial(take, work), slots, recorder)
    except KeyboardInterrupt:  # a second signal while the workers were saving
        raise InterruptedRunError("stopped by two signals; start it again to go on") from None
    finally:
        watcher.closed()
    return list(recorder.ended_here.values())


def take(work: Work, payload: dict[str, Any], report: Report) -> dict[str, Any]:
    """Do one cell in a worker unless another process came first. Raises TakenError."""
    directory = run_directory(build(TrainConfig, payload["config"]))
    if is_done(directory) or read_state(directory)[0] == "failed":
        raise TakenError(f"{directory} was finished by another process")
    with _on_stop_signals(_stop_before_training):  # until the training loop has its own handlers
        return work(payload, report)


class _Recorder(SweepWatcher):
    """Writes failures into the cells' folders, and passes on what happens here."""

    def __init__(self, directories: dict[str, Path], watcher: SweepWatcher) -> None:
        self.directories, self.watcher = directories, watcher
        self.ended_here: dict[str, Outcome] = {}

    def started(self, job: Job) -> None:
        self.watcher.started(job)

    def reported(self, job: Job, progress: dict[str, Any]) -> None:
        self.watcher.reported(job, progress)

    def ended(self, outcome: Outcome) -> None:
        if outcome.exit_code == RunLockedError.exit_code:
            return  # another process has it
        self.ended_here[outcome.job.name] = outcome
        if outcome.error is not None and not _was_stopped(outcome):
            directory = self.directories[outcome.job.name]
            with contextlib.suppress(RunLockedError), hold(directory):
                write_state(directory, "failed", outcome.error)
        self.watcher.ended(outcome)


def _open_cells(jobs: dict[Path, Job], recorder: _Recorder) -> list[Job]:
    return [
        job
        for path, job in jobs.items()
        if job.name not in recorder.ended_here
        and not is_done(path)
        and read_state(path)[0] != "failed"
        and not is_held(path)
    ]


def _was_stopped(outcome: Outcome) -> bool:
    assert outcome.error is not None
    interrupted = outcome.exit_code == InterruptedRunError.exit_code
    return interrupted or outcome.error.endswith(KILLED_BY_STOP)


def _stop_before_training(number: int, _frame: object) -> None:
    raise InterruptedRunError(f"{signal.Signals(number).name} before the first step")


def _stop_the_pool(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt  # the pool then lets its workers save and stops


@contextlib.contextmanager
def _on_stop_signals(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Call `handler` on every stop signal that is not ignored, as nohup ignores HUP."""
    heard = [n for n in STOP_SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
