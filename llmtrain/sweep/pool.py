"""A bounded pool of warm worker processes, one per core or GPU; replaced when a job kills it."""

import contextlib
import dataclasses
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from llmtrain.spec.errors import InterruptedRunError
from llmtrain.spec.signals import STOP_SIGNALS, handled, interrupt
from llmtrain.spec.words import plural
from llmtrain.sweep.ahead import Ahead, Compiler
from llmtrain.sweep.process import GRACE_S, Job, Outcome, Slot, Work, Worker, signals_wait

LOOKS = 4  # times that a worker is looked at within the limit of a hang
DEVICES = Path("/dev")
IDLE_S = 10.0  # how long workers are kept for jobs that may come: a few times what a start takes


class Watcher:
    """Is told what happens in the pool; this one says nothing."""

    def started(self, job: Job) -> None:
        """A worker took the job."""

    def reported(self, job: Job, progress: dict[str, Any]) -> None:
        """The job reported progress."""

    def ended(self, outcome: Outcome) -> None:
        """The job is over."""

    def stopping(self) -> None:
        """A signal came; the workers save before they leave."""

    def warned(self, line: str) -> None:
        """Something went wrong that the jobs do without."""


def make_slots(per_device: int) -> list[Slot]:
    """Return one slot per GPU, or per core where there is none, times `per_device`."""
    cores = sorted(os.sched_getaffinity(0))
    gpus = _visible_gpus()
    count = (len(gpus) or len(cores)) * per_device
    share = max(1, len(cores) // count)
    return [
        Slot(
            index=i,
            cores=tuple(cores[(i * share + k) % len(cores)] for k in range(share)),
            gpu=gpus[i % len(gpus)] if gpus else None,
        )
        for i in range(count)
    ]


def ahead_slots(count: int, slots: Sequence[Slot]) -> list[Slot]:
    """Return slots for processes beside those that train: on any core, on the GPUs in turn."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    gpus = [slot.gpu for slot in slots]
    return [Slot(index=len(slots) + i, cores=cores, gpu=gpus[i % len(gpus)]) for i in range(count)]


class Pool:
    """Warm workers, at most one per slot: started when jobs need them, kept from run to run."""

    def __init__(
        self, work: Work, slots: Sequence[Slot], scratch: Path, hang_s: float | None, ahead: Ahead
    ) -> None:
        self.work, self.slots, self.scratch = work, slots, scratch
        self.hang_s, self.ahead = hang_s, ahead
        self.workers: list[Worker] = []
        self.idle_since = time.monotonic()

    def run(self, jobs: Sequence[Job], watcher: Watcher) -> list[Outcome]:
        """Run all jobs, longest first, and return their outcomes in the order of `jobs`.

        Jobs that wait for another one come last, and fail with it unless they are ready. A job that
        raises, kills its worker, or gives no sign of life for `hang_s` seconds is an outcome with
        an error; the others go on. A signal is passed to the workers, which save; then
        InterruptedRunError is raised. An error of the watcher's stops them in the same way.
        Workers beyond the number of jobs are ended.
        """
        queue = sorted(jobs, key=lambda job: (job.after is not None, -job.cost))
        outcomes: dict[str, Outcome] = {}
        try:
            _hand_out(queue, self.workers, watcher)
            self._keep(len(jobs))
            for slot in self.slots[len(self.workers) : len(jobs)]:
                with signals_wait():
                    self.workers.append(Worker(slot, self.work, self.scratch))
                _hand_out(queue, self.workers, watcher)
            while busy := [worker for worker in self.workers if worker.job is not None]:
                self.ahead.hand_out(queue, [worker.job for worker in busy if worker.job])
                for worker in _ready([*busy, *self.ahead.busy()], self.hang_s):
                    if isinstance(worker, Compiler):
                        self.ahead.hear(worker)
                        continue
                    job, found = worker.job, worker.receive()
                    if isinstance(found, Outcome):
                        for ended in (found, *_fail_with(found, queue)):
                            outcomes[ended.job.name] = ended
                            watcher.ended(ended)
                    elif job is not None:
                        watcher.reported(job, found)
                _hand_out(queue, self.workers, watcher)
        except KeyboardInterrupt:
            self.ahead.close()
            watcher.stopping()
            _stop(self.workers)
            done = sum(outcome.error is None for outcome in outcomes.values())
            raise InterruptedRunError(
                f"stopped with {done} of {plural(len(jobs), 'cell')} done; run the same command to "
                "go on"
            ) from None
        except BaseException:  # the watcher's: what ended one job would end all
            self.ahead.close()
            _stop(self.workers)
            raise
        self.idle_since = time.monotonic()
        return [outcomes[job.name] for job in jobs]

    def rest(self) -> None:
        """End processes that have been idle for IDLE_S; for who waits, again and again."""
        if time.monotonic() - self.idle_since >= IDLE_S:
            self.close()

    def close(self) -> None:
        """End all processes; a later run starts new ones."""
        self.ahead.close()
        self._keep(0)

    def _keep(self, count: int) -> None:
        """End all workers but the first `count`."""
        for worker in self.workers[count:]:
            worker.pipe.close()  # so that all leave at the same time
        while len(self.workers) > count:
            self.workers[-1].close()
            self.workers.pop()


@contextlib.contextmanager
def open_pool(
    work: Work,
    slots: Sequence[Slot],
    *,
    hang_s: float | None = None,
    ahead: Ahead | None = None,
) -> Iterator[Pool]:
    """Give a pool whose processes end with the `with` block; `ahead` compiles for its jobs.

    Any of STOP_SIGNALS within the block ends it with InterruptedRunError.
    """
    with (
        tempfile.TemporaryDirectory(prefix="llmtrain-") as scratch,
        handled(STOP_SIGNALS, interrupt),
    ):
        try:
            with contextlib.closing(
                Pool(work, slots, Path(scratch), hang_s, Ahead() if ahead is None else ahead)
            ) as pool:
                yield pool
        except KeyboardInterrupt as stopped:  # between runs, or again while the workers save
            raise InterruptedRunError(
                f"stopped by {stopped}; run the same command to go on"
            ) from None


def _hand_out(queue: list[Job], workers: Sequence[Worker], watcher: Watcher) -> None:
    """Give every idle worker the first job that can start."""
    for worker in workers:
        open_jobs = {job.name for job in queue}
        open_jobs |= {other.job.name for other in workers if other.job is not None}
        can_start = (job for job in queue if job.after not in open_jobs or _can_start(job))
        if worker.job is None and (job := next(can_start, None)) is not None:
            queue.remove(job)
            worker.give(job)
            watcher.started(job)


def _fail_with(outcome: Outcome, queue: list[Job]) -> list[Outcome]:
    """Take the jobs that waited in vain for one that failed out of the queue, as failed."""
    if outcome.error is None:
        return []
    lost = [job for job in queue if job.after == outcome.job.name and not _can_start(job)]
    for job in lost:
        queue.remove(job)
    error = f"{outcome.job.name}, which it starts from, failed: {outcome.error}"
    return [dataclasses.replace(outcome, job=job, error=error, stack=None) for job in lost]


def _can_start(job: Job) -> bool:
    return job.ready is not None and job.ready()


def _ready(busy: Sequence[Worker], hang_s: float | None) -> list[Worker]:
    """Return the workers that have something to say; one that hangs is killed and says so."""
    tick_s = hang_s and hang_s / LOOKS
    pipes = wait([worker.pipe for worker in busy], tick_s)
    ready = [worker for worker in busy if worker.pipe in pipes]
    if hang_s and tick_s:
        for worker in busy:
            if worker not in ready:
                worker.end_if_hung(hang_s, tick_s)
    return ready


def _stop(workers: Sequence[Worker]) -> None:
    """Ask every busy worker to save and leave, and wait for it."""
    busy = [worker for worker in workers if worker.job is not None and worker.process.is_alive()]
    for worker in busy:
        worker.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    for worker in busy:
        while worker.pipe.poll(max(0.0, deadline - time.monotonic())):
            try:
                kind, *_ = worker.pipe.recv()
            except (EOFError, OSError):
                break
            if kind != "progress":
                break


def _visible_gpus() -> list[str]:
    """Return the GPUs' indices without importing torch: the driver process stays light."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu.strip() for gpu in visible.split(",") if gpu.strip() not in ("", "-1")]
    # A container that was given GPU 3 alone has /dev/nvidia3, and CUDA counts it as 0.
    found = [path for path in DEVICES.glob("nvidia*") if path.name[len("nvidia") :].isdigit()]
    return [str(number) for number in range(len(found))]
