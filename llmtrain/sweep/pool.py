"""A bounded pool of warm worker processes, one per core or GPU; replaced when a job kills it."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from llmtrain.spec.errors import InterruptedRunError, LlmtrainError
from llmtrain.spec.redact import redact

Report = Callable[[dict[str, Any]], None]
Work = Callable[[dict[str, Any], Report], dict[str, Any]]
"""Does one job: takes its payload and a function to report progress with, returns its result."""

GRACE_S = 30.0  # what a worker gets to save its state after a signal
PR_SET_PDEATHSIG = 1
# glibc gives big blocks back to the system after every step and takes them anew: keeping them made
# tiny models 9 to 15 % faster (docs/experiments.md). Read once, when a process starts.
WORKER_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Something to do in a worker."""

    name: str
    payload: dict[str, Any]
    cost: float
    """Any measure of its length; the longest job starts first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a job ended."""

    job: Job
    result: dict[str, Any] | None
    error: str | None
    """Why it failed, in one line; None where it did not."""
    exit_code: int
    """0, or what a script would leave with for this error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """Where a worker runs."""

    index: int
    cores: tuple[int, ...]
    gpu: str | None


class Watcher:
    """Is told what happens in the pool; this one says nothing."""

    def started(self, job: Job) -> None:
        """A worker took the job."""

    def reported(self, job: Job, progress: dict[str, Any]) -> None:
        """The job reported progress."""

    def ended(self, outcome: Outcome) -> None:
        """The job is over."""


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


def run_jobs(
    jobs: Sequence[Job], work: Work, slots: Sequence[Slot], watcher: Watcher
) -> list[Outcome]:
    """Run all jobs, longest first, and return their outcomes in the order of `jobs`.

    A job that raises, or kills its worker, is an outcome with an error; the others go on. A signal
    (SIGINT, SIGTERM) is passed to the workers, which save; then InterruptedRunError is raised.
    """
    queue = sorted(jobs, key=lambda job: job.cost, reverse=True)
    outcomes: dict[str, Outcome] = {}
    workers = [_Worker(slot, work) for slot in slots[: len(jobs)]]
    try:
        with _signals_interrupt():
            for worker in workers:
                if queue:
                    worker.give(queue.pop(0), watcher)
            while busy := [worker for worker in workers if worker.job is not None]:
                for worker in _ready(busy):
                    outcome = worker.receive(watcher)
                    if outcome is None:
                        continue
                    outcomes[outcome.job.name] = outcome
                    watcher.ended(outcome)
                    if queue:
                        worker.give(queue.pop(0), watcher)
    except KeyboardInterrupt:
        _stop(workers)
        done = sum(outcome.error is None for outcome in outcomes.values())
        raise InterruptedRunError(
            f"stopped with {done} of {len(jobs)} cells done; run the same command to go on"
        ) from None
    finally:
        for worker in workers:
            worker.close()
    return [outcomes[job.name] for job in jobs]


class _Worker:
    """A process, the pipe to it, and the job it is at."""

    def __init__(self, slot: Slot, work: Work) -> None:
        self.slot, self.work = slot, work
        self.job: Job | None = None
        self._start()

    def _start(self) -> None:
        for name, value in WORKER_MALLOC.items():
            os.environ.setdefault(name, value)
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_serve, args=(there, self.work, self.slot), daemon=True
        )
        self.process.start()
        there.close()

    def give(self, job: Job, watcher: Watcher) -> None:
        self.job = job
        with contextlib.suppress(BrokenPipeError):  # a dead worker shows itself in receive
            self.pipe.send(job.payload)
        watcher.started(job)

    def receive(self, watcher: Watcher) -> Outcome | None:
        """Return the job's outcome if it has one now; a dead worker is replaced."""
        assert self.job is not None
        try:
            kind, value, exit_code = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            reason = (
                f"was killed by {signal.Signals(-code).name}"
                if code < 0
                else f"left with code {code}"
            )
            self.pipe.close()
            self._start()
            return self._outcome(None, f"the worker {reason}", 1)
        if kind == "progress":
            watcher.reported(self.job, value)
            return None
        if kind == "done":
            return self._outcome(value, None, exit_code)
        return self._outcome(None, value, exit_code)

    def _outcome(self, result: dict[str, Any] | None, error: str | None, code: int) -> Outcome:
        assert self.job is not None
        outcome = Outcome(job=self.job, result=result, error=error, exit_code=code)
        self.job = None
        return outcome

    def close(self) -> None:
        self.pipe.close()  # an idle worker leaves when its pipe ends
        self.process.join(timeout=GRACE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _ready(busy: Sequence[_Worker]) -> list[_Worker]:
    pipes = wait([worker.pipe for worker in busy])
    return [worker for worker in busy if worker.pipe in pipes]


def _stop(workers: Sequence[_Worker]) -> None:
    """Ask every busy worker to save and leave, and wait for it."""
    busy = [worker for worker in workers if worker.job is not None and worker.process.is_alive()]
    for worker in busy:
        assert worker.process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.process.pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    for worker in busy:
        while worker.job is not None and worker.pipe.poll(max(0.0, deadline - time.monotonic())):
            try:
                kind, _, _ = worker.pipe.recv()
            except (EOFError, OSError):
                break
            if kind != "progress":
                break


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Make SIGTERM and SIGINT raise KeyboardInterrupt, also where SIGINT came in ignored."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _serve(pipe: Connection, work: Work, slot: Slot) -> None:
    """Do jobs until the pipe ends. Runs in the worker process."""
    os.environ.update(OMP_NUM_THREADS=str(len(slot.cores)), TOKENIZERS_PARALLELISM="false")
    if slot.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = slot.gpu
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, slot.cores)
    if sys.platform == "linux":  # a worker whose driver was killed saves and leaves too
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the driver, which asks to stop

    def report(progress: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):
            pipe.send(("progress", progress, 0))

    while True:
        try:
            payload = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)  # every file is closed; taking torch apart would cost a second
        try:
            answer: tuple[str, Any, int] = ("done", work(payload, report), 0)
        except LlmtrainError as error:
            answer = ("error", redact(str(error)), error.exit_code)
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            answer = ("error", redact(f"{type(error).__name__}: {first}"), 1)
        with contextlib.suppress(BrokenPipeError):
            pipe.send(answer)


def _visible_gpus() -> list[str]:
    """Return the GPUs' indices without importing torch: the driver process stays light."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu.strip() for gpu in visible.split(",") if gpu.strip() not in ("", "-1")]
    found = (path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia*"))
    return sorted((name for name in found if name.isdigit()), key=int)
