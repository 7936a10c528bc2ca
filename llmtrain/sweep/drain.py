"""Cells in a file on a shared folder, and any number of machines that work them off together."""

import contextlib
import dataclasses
import functools
import hashlib
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain.spec.branching import branch_checkpoint
from llmtrain.spec.build import build
from llmtrain.spec.compile_cache import compile_cache
from llmtrain.spec.disk import make_folder
from llmtrain.spec.errors import ConfigError, DiskError, InterruptedRunError, RunLockedError
from llmtrain.spec.jsonfile import read_json
from llmtrain.spec.plan import plan_run, run_id
from llmtrain.spec.record import Spent
from llmtrain.spec.room import refuse_room
from llmtrain.spec.rundir import is_held, read_spent, read_state, run_directory, write_json
from llmtrain.spec.settings import TrainConfig
from llmtrain.spec.signals import SCHEDULER_SIGNALS, handled
from llmtrain.sweep.ahead import Ahead
from llmtrain.sweep.ledger import (
    CellStatus,
    alone,
    is_done,
    is_passed_by,
    note_failure,
    release_branches,
)
from llmtrain.sweep.pool import Pool, Watcher, open_pool
from llmtrain.sweep.process import DIED, Job, Outcome, Report, Slot, Work, by_part
from llmtrain.sweep.stacks import stack_jobs

KILLED_BY_STOP = tuple(f"killed by {number.name}" for number in SCHEDULER_SIGNALS)
LOOK_EVERY_S = 0.5  # at cells that other processes hold


class SweepWatcher(Watcher):
    """A watcher that also hears how much there is to do; this one says nothing."""

    def opened(
        self, jobs: Sequence[Job], n_done: int, n_slots: int, folders: Sequence[Path]
    ) -> None:
        """The sweep begins: what is left, how many cells are finished, the folders of them all."""

    def would_run(self, to_do: Sequence[CellStatus], others: Sequence[CellStatus]) -> None:
        """A dry run: the cells that would be trained, and those that are done or passed by."""

    def passed_by(self, job: Job, reason: str | None) -> None:
        """A cell has failed before and is not tried now."""

    def waiting(self, n_cells: int) -> None:
        """Nothing is left but cells that other processes are at; called again and again."""

    def submitted(self, job_id: str, n_cells: int, n_tasks: int, directory: Path) -> None:
        """The sweep has been handed to a cluster, which runs it when it can."""

    def decided(self, line: str) -> None:
        """An adaptive sweep decided what to run next, or to stop."""

    def closed(self) -> None:
        """The sweep is over."""


class TakenError(RunLockedError):
    """The cell belongs to another process, or another process has finished with it."""


def cell_job(config: TrainConfig) -> Job:
    """Return the job that trains one cell; a branch's waits for the state that its trunk keeps."""
    cost = config.budget.flops or config.budget.n_tokens or 0.0
    job = Job(name=run_id(config), payload={"config": dataclasses.asdict(config)}, cost=cost)
    trunk = config.checkpoint.branch_from
    if trunk is None:
        return job
    plan = plan_run(config, vocab_size=config.data.vocab_size, unique_tokens=None)
    return dataclasses.replace(
        job,
        cost=cost * config.schedule.cooldown_fraction,
        after=trunk,
        ready=branch_checkpoint(config, plan).is_dir,
    )


def write_cells(configs: Sequence[TrainConfig]) -> Path:
    """Write the cells into the folder of their sweep and return the file, named by its content."""
    cells = [dataclasses.asdict(config) for config in configs]
    digest = hashlib.sha256("".join(sorted(run_id(c) for c in configs)).encode()).hexdigest()
    directory = Path(configs[0].runs_root) / configs[0].name
    make_folder(directory)
    path = directory / f"cells-{digest[:8]}.json"
    with alone(directory):
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


def refuse_sweep_room(configs: Sequence[TrainConfig], *, at_once: int) -> None:
    """Raise DiskError where the disk has no room for cells that are still to be trained."""
    if configs:
        runs = [(c, plan_run(c, vocab_size=c.data.vocab_size, unique_tokens=None)) for c in configs]
        refuse_room(run_directory(configs[0]).parent, runs, at_once=at_once)


def cell_pool(
    work: Work,
    slots: Sequence[Slot],
    *,
    hang_s: float | None = None,
    ahead: Ahead | None = None,
) -> contextlib.AbstractContextManager[Pool]:
    """Return a pool for `drain`, to be opened by `with`; `work` trains the cell of a payload."""
    return open_pool(functools.partial(take, work), slots, hang_s=hang_s, ahead=ahead)


def drain(
    configs: Sequence[TrainConfig], pool: Pool, watcher: SweepWatcher, *, wait: bool = False
) -> list[Outcome]:
    """Train every cell that is neither done, nor failed, nor held by another process.

    `pool` is a cell_pool; its workers stay warm. `wait`: go on until no other process holds
    a cell either, and take up what it leaves undone.
    Returns the outcomes of the cells that ended here, failures among them. A signal makes the
    workers save and raises InterruptedRunError. A disk without room for all cells is refused
    before the first one; one that is full for a cell is for all of them: both DiskError.
    """
    jobs = {run_directory(config): cell_job(config) for config in configs}
    recorder = _Recorder({job.name: path for path, job in jobs.items()}, watcher)
    done = {path for path in jobs if is_done(path)}
    passed_by = [path for path in jobs if path not in done and is_passed_by(path)]
    unsettled = [path for path in jobs if path not in done and path not in passed_by]
    n_slots = len(pool.slots)
    refuse_sweep_room([c for c in configs if run_directory(c) in unsettled], at_once=n_slots)
    first = [jobs[path] for path in unsettled]
    watcher.opened(first, len(done), n_slots, list(jobs))
    for path in passed_by:
        watcher.passed_by(jobs[path], read_state(path)[1])
    try:
        with compile_cache(configs):
            # Each look takes up what another process held in the one before and then gave back.
            while unsettled := _unsettled(jobs, recorder):
                if free := [path for path in unsettled if _is_free(path, jobs[path])]:
                    pool.run(stack_jobs({path: jobs[path] for path in free}, configs), recorder)
                    if _unsettled(jobs, recorder) == unsettled:  # others took them all
                        time.sleep(LOOK_EVERY_S)
                elif wait:
                    watcher.waiting(len(unsettled))
                    pool.rest()
                    time.sleep(LOOK_EVERY_S)
                else:
                    break
    finally:
        watcher.closed()
    release_branches(configs)
    return list(recorder.ended_here.values())


def take(work: Work, payload: dict[str, Any], report: Report) -> dict[str, Any]:
    """Do one cell in a worker unless another process came first. Raises TakenError."""
    raw = payload.get("stack") or [payload["config"]]
    paths = [run_directory(build(TrainConfig, config)) for config in raw]
    settled = [is_done(path) or is_passed_by(path) for path in paths]
    directory = paths[0]
    if all(settled):
        raise TakenError(f"{directory} was finished by another process")
    if "stack" in payload:
        left = zip(raw, settled, strict=True)
        payload = {"stack": [config for config, is_settled in left if not is_settled]}
    signs_of_life = 0

    def counted(progress: dict[str, Any]) -> None:
        nonlocal signs_of_life
        signs_of_life += 1
        report(progress)

    # Until the training loop has its own handlers.
    with handled(SCHEDULER_SIGNALS, _stop_before_training):
        result = work(payload, counted)
    if not (signs_of_life or _has_failed(result)):  # the record was there when the lock was ours
        raise TakenError(f"{directory} was finished by another process")
    return result


def _has_failed(result: dict[str, Any]) -> bool:
    """Return whether a cell of a stack failed, other than by another process's lock."""
    codes = [end.get("exit_code", 0) for end in result.get("cells", {}).values()]
    return any(code not in (0, RunLockedError.exit_code) for code in codes)


@dataclass(frozen=True, slots=True)
class _Start:
    """When a cell was given to a worker, and what it had used before."""

    begin: float
    before: Spent | None
    n_parts: int

    def spent(self, directory: Path) -> Spent | None:
        """Return what a cell has used whose worker died over it; None where it never said."""
        noted, here_s = read_spent(directory), (time.monotonic() - self.begin) / self.n_parts
        return noted and noted.until(here_s + (self.before.wall_s if self.before else 0.0))


class _Recorder(SweepWatcher):
    """Writes failures into the cells' folders, and passes on what happens here."""

    def __init__(self, directories: dict[str, Path], watcher: SweepWatcher) -> None:
        self.directories, self.watcher = directories, watcher
        self.ended_here: dict[str, Outcome] = {}
        self.starts: dict[str, _Start] = {}

    def started(self, job: Job) -> None:
        parts = job.parts or (job,)
        for part in parts:
            before = read_spent(self.directories[part.name])
            self.starts[part.name] = _Start(time.monotonic(), before, len(parts))
            self.watcher.started(part)

    def reported(self, job: Job, progress: dict[str, Any]) -> None:
        for part in job.parts or (job,):
            if progress.get("cell", part.name) == part.name:
                self.watcher.reported(part, progress)

    def stopping(self) -> None:
        self.watcher.stopping()

    def ended(self, outcome: Outcome) -> None:
        for part in by_part(outcome):
            if not outcome.job.parts or part.error is None or not self._is_done(part.job):
                self._ended(part)

    def _is_done(self, job: Job) -> bool:
        return is_done(self.directories[job.name])

    def _ended(self, outcome: Outcome) -> None:
        start = self.starts.pop(outcome.job.name, None)  # a branch of a failed trunk has none
        if outcome.exit_code == RunLockedError.exit_code:
            return  # another process has it
        if outcome.way == DiskError.__name__:  # no cell's fault, and the others would meet it too
            raise DiskError(f"{outcome.job.name}: {outcome.error}")
        self.ended_here[outcome.job.name] = outcome
        if outcome.error is not None and not _was_stopped(outcome):
            directory = self.directories[outcome.job.name]
            spent = start.spent(directory) if start and outcome.way == DIED else None
            note_failure(directory, outcome, spent)
        self.watcher.ended(outcome)


def _unsettled(jobs: dict[Path, Job], recorder: _Recorder) -> list[Path]:
    """Return the cells that have not ended: neither here nor, as their folders say, elsewhere."""
    return [
        path
        for path, job in jobs.items()
        if job.name not in recorder.ended_here and not is_done(path) and not is_passed_by(path)
    ]


def _is_free(path: Path, job: Job) -> bool:
    """Return whether no other process is at the cell, nor at the trunk that it starts from."""
    if is_held(path):
        return False
    if job.after is None or job.ready is None or job.ready():
        return True
    trunk = path.with_name(job.after)
    return is_done(trunk) or not is_held(trunk)


def _was_stopped(outcome: Outcome) -> bool:
    assert outcome.error is not None
    interrupted = outcome.exit_code == InterruptedRunError.exit_code
    return interrupted or outcome.error.endswith(KILLED_BY_STOP)


def _stop_before_training(number: int, _frame: object) -> None:
    raise InterruptedRunError(f"{signal.Signals(number).name} before the first step")
