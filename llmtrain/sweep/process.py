"""One warm worker process: its pipe, its heartbeat, its stack when it dies."""

import contextlib
import ctypes
import faulthandler
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

from llmtrain.spec.disk import disk_error
from llmtrain.spec.errors import DeviceLostError, HangError, LlmtrainError
from llmtrain.spec.redact import redact
from llmtrain.spec.signals import STOP_SIGNALS, handled
from llmtrain.spec.silence import STACK_FILE, Silence

Report = Callable[[dict[str, Any]], None]
"""Tells the driver of progress; an empty report is a sign of life and sends nothing."""
Work = Callable[[dict[str, Any], Report], dict[str, Any]]
"""Does one job: takes its payload and a function to report progress with, returns its result."""

GRACE_S = 30.0  # what a worker gets to save its state after a signal
DUMP_S = 5.0  # what a hanging worker gets to write its stack
PR_SET_PDEATHSIG = 1
# glibc gives big blocks back to the system after every step and takes them anew: keeping them made
# tiny models 9 to 15 % faster (docs/experiments.md). Read once, when a process starts.
WORKER_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
LAST = -1_000  # of what a process does when it ends
LAST_WORDS = DeviceLostError.__name__  # the way of failing after which a worker is of no use
DIED = "died"
"""The way of failing of every job that took its worker with it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Something to do in a worker."""

    name: str
    payload: dict[str, Any]
    cost: float
    """Any measure of its length; the longest job starts first."""
    after: str | None = None
    """Name of a job of the same pool to wait for, until it has ended or `ready` says so."""
    ready: Callable[[], bool] | None = None
    """Whether what the job needs of the one it waits for is there already."""
    parts: "tuple[Job, ...]" = ()
    """The jobs that this one does together; its result has theirs, by name, under "cells"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a job ended."""

    job: Job
    result: dict[str, Any] | None = None
    error: str | None = None
    """Why it failed, in one line; None where it did not."""
    exit_code: int = 0
    """0, or what a script would leave with for this error."""
    way: str | None = None
    """How it failed: the class of the error, or DIED; None where it did not."""
    stack: str | None = None
    """Where its threads were when it was killed for hanging, or crashed."""


def by_part(outcome: Outcome) -> list[Outcome]:
    """Return the outcome of every job that a job did: its own, or that of each of its parts.

    A part that the result does not name ended elsewhere.
    """
    parts = outcome.job.parts
    if not parts:
        return [outcome]
    if outcome.result is None:
        return [replace(outcome, job=part) for part in parts]
    ends = outcome.result["cells"]
    return [Outcome(job=part, **ends[part.name]) for part in parts if part.name in ends]


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """Where a worker runs."""

    index: int
    cores: tuple[int, ...]
    gpu: str | None


class Worker:
    """A process, the pipe to it, and the job it is at; a process that dies is replaced."""

    is_replaced = True

    def __init__(self, slot: Slot, work: Work, scratch: Path) -> None:
        """Start the process. `scratch`: an empty folder for the stacks of dying workers."""
        self.slot, self.work = slot, work
        self.stack_file = scratch / f"stack-{slot.index}.txt"
        self.job: Job | None = None
        self.hung_s: float | None = None
        self._start()

    def _start(self) -> None:
        for name, value in WORKER_MALLOC.items():
            os.environ.setdefault(name, value)
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.beats = context.RawValue(ctypes.c_uint64)
        self.process: BaseProcess = context.Process(
            target=_serve, args=(there, self.work, self.slot, self.beats, str(self.stack_file))
        )
        self.process.daemon = True
        resource_tracker.ensure_running()  # its own start lets SIGINT through again
        with signals_wait():
            self.process.start()
        there.close()

    def give(self, job: Job) -> None:
        """Hand over a job; a worker that dies over it shows itself in `receive`."""
        if self.is_replaced and not self.process.is_alive():  # it died idle: no fault of the job's
            self.pipe.close()
            self._start()
        self.job = job
        self.beats.value = 0  # a new shape is compiled before its first sign of life
        self.silence = Silence(self.beats.value)
        with contextlib.suppress(BrokenPipeError):
            self.pipe.send(job.payload)

    def receive(self) -> Outcome | dict[str, Any]:
        """Return the job's outcome or, while it is under way, the progress that it reports."""
        assert self.job is not None
        try:
            kind, value, way, code = self.pipe.recv()
        except (EOFError, OSError):
            return self._replace(self.job)
        if kind == "progress":
            return dict(value)
        job, self.job = self.job, None
        if way == LAST_WORDS:
            self.process.kill()  # by itself it might wait for the GPU for ever
            self._end_process()
        if kind == "done":
            return Outcome(job=job, result=value)
        return Outcome(job=job, error=value, exit_code=code, way=way)

    def end_if_hung(self, limit_s: float, tick_s: float) -> None:
        """Kill the process where its job has given no sign of life for `limit_s` seconds.

        Call it every `tick_s`: a longer pause, in which this process itself was stopped, counts as
        one tick. SIGABRT makes the process write the stacks of its threads; `receive` has them.
        """
        if self.silence.is_too_long(self.beats.value, limit_s=limit_s, tick_s=tick_s):
            self.hung_s = limit_s
            self.send_signal(signal.SIGABRT)
            self.process.join(timeout=DUMP_S)
            self.process.kill()

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, if there is still someone to get it."""
        assert self.process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def close(self) -> None:
        """End the process: an idle one leaves when its pipe ends, any other is killed."""
        self.pipe.close()
        if self.process.pid is None:  # a signal came before it was started
            return
        self.process.join(timeout=GRACE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def _replace(self, job: Job) -> Outcome:
        """Return how the process died over the job, and start another one if that is wanted."""
        self.process.join()
        code = self.process.exitcode or 0
        error, exit_code = f"the worker left with code {code}", 1
        if code < 0:
            error = f"the worker was killed by {signal.Signals(-code).name}"
        if self.hung_s is not None:
            error = f"no step for hang_seconds={self.hung_s:g}; {STACK_FILE} says where it stood"
            exit_code = HangError.exit_code
        stack = None
        if self.stack_file.is_file():
            stack = self.stack_file.read_text(encoding="utf-8", errors="replace") or None
        self.job = self.hung_s = None
        self._end_process()
        return Outcome(job=job, error=error, exit_code=exit_code, way=DIED, stack=stack)

    def _end_process(self) -> None:
        """Have done with a process that is dead, and start another one if that is wanted."""
        self.close()
        if self.is_replaced:
            self._start()


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Hold signals back: half a start, or one that nobody knows of, says so with a traceback.

    SIGINT also in a process that is started meanwhile, which must not die of it. The mask alone
    would not do: any other thread can be given the signal, and the main one then acts on it.
    """
    heard: list[int] = []
    try:
        with handled(STOP_SIGNALS, lambda number, _frame: heard.append(number)):
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                yield
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
    finally:
        for number in heard[:1]:
            signal.raise_signal(number)


def _serve(pipe: Connection, work: Work, slot: Slot, beats: Any, stack_file: str) -> None:
    """Do jobs until the pipe ends. Runs in the worker process."""
    os.environ.update(OMP_NUM_THREADS=str(len(slot.cores)), TOKENIZERS_PARALLELISM="false")
    if slot.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = slot.gpu
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, slot.cores)
    if sys.platform == "linux":  # a worker whose driver was killed saves and leaves too
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the driver, which asks to stop
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    stacks = Path(stack_file).open("w", encoding="utf-8")  # noqa: SIM115 - open until the process ends
    faulthandler.enable(stacks)  # on SIGABRT, SIGSEGV and their like

    def report(progress: dict[str, Any]) -> None:
        beats.value += 1
        if progress:
            with contextlib.suppress(BrokenPipeError):
                pipe.send(("progress", progress, None, 0))

    while True:
        try:
            payload = pipe.recv()
        except (EOFError, OSError):
            return _leave()
        try:
            answer: tuple[str, Any, str | None, int] = ("done", work(payload, report), None, 0)
        except Exception as error:
            answer = _told(error)
        with contextlib.suppress(BrokenPipeError):
            pipe.send(answer)


def _leave() -> None:
    """Have this process end when it has undone what libraries registered: every file is closed.

    Taking torch apart behind that would cost a second.
    """
    Finalize(None, os._exit, args=(0,), exitpriority=LAST)


def _told(error: Exception) -> tuple[str, str, str, int]:
    """Return an error as the driver is told of it."""
    known = disk_error(error) if isinstance(error, OSError) else error
    if isinstance(known, LlmtrainError):
        return "error", redact(str(known)), type(known).__name__, known.exit_code
    name, first = type(error).__name__, (str(error).splitlines() or [""])[0]
    return "error", redact(f"{name}: {first}"), name, 1
