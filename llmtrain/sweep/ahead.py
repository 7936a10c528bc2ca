"""Processes that compile what the next cells of a sweep need, while others train."""

import contextlib
import functools
import os
import signal
import tempfile
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

from llmtrain.spec.build import build
from llmtrain.spec.graphs import Graph, graphs
from llmtrain.spec.plan import plan_run
from llmtrain.spec.settings import TrainConfig
from llmtrain.sweep.process import (
    DIED,
    LAST_WORDS,
    Job,
    Outcome,
    Report,
    Slot,
    Work,
    Worker,
    signals_wait,
)

NICE = 10  # a cell that trains comes first where cores are short

Needs = Callable[[Job], frozenset[Hashable]]
"""What a job compiles; jobs that have one in common share it."""


def graphs_of(job: Job) -> frozenset[Graph]:
    """Return the graphs of a cell, or of the cells that are trained as one."""
    raw = job.payload.get("stack") or [job.payload["config"]]
    config = build(TrainConfig, raw[0])
    plan = plan_run(config, vocab_size=config.data.vocab_size, unique_tokens=None)
    return graphs(config, plan, n_runs=len(raw))


class Compiler(Worker):
    """A worker that is not replaced when it dies, and never waited for when it is to end."""

    is_replaced = False

    def end(self) -> None:
        """Kill the process and the compilers that it has started."""
        if self.process.is_alive():
            assert self.process.pid is not None
            for kill in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError):
                    kill(self.process.pid, signal.SIGKILL)
        self.close()


class Ahead:
    """Takes the cells that will start next, one for everything that is new; no cell waits for it.

    Without slots it does nothing. What fails is said once, and the sweep does without.
    """

    def __init__(
        self,
        slots: Sequence[Slot] = (),
        work: Work | None = None,
        needs: Needs = graphs_of,
        tell: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self.free, self.work, self.needs, self.tell = list(slots), work, needs, tell
        self.workers: list[Compiler] = []
        self.known: set[Hashable] = set()
        self.needs_of: dict[str, frozenset[Hashable]] = {}
        self.scratch: tempfile.TemporaryDirectory[str] | None = None
        self.has_told = False

    def close(self) -> None:
        """End all processes at once; a later job may start new ones."""
        while self.workers:
            self.workers[-1].end()
            self.free.append(self.workers.pop().slot)
        if self.scratch is not None:
            self.scratch.cleanup()
            self.scratch = None

    def busy(self) -> list[Compiler]:
        """Return the processes that are compiling."""
        return [worker for worker in self.workers if worker.job is not None]

    def hand_out(self, queue: Iterable[Job], at_work: Iterable[Job]) -> None:
        """Give the idle the first jobs of the queue that need something new, and end the others.

        `at_work`: the jobs that have started; they compile what they need themselves.
        """
        if not (self.free or self.workers):
            return
        for job in at_work:
            self.known |= self._needs(job)
        for job in queue:
            if self._needs(job) <= self.known:
                continue
            if (worker := self._idle()) is None:
                break
            worker.give(job)
            self.known |= self._needs(job)
        for worker in [worker for worker in self.workers if worker.job is None]:
            self._end(worker)
            self.free.append(worker.slot)

    def hear(self, worker: Compiler) -> None:
        """Take what a process says; one that has died is not replaced."""
        found = worker.receive()
        if not isinstance(found, Outcome) or found.error is None:
            return
        self._tell(f"compiling ahead for {found.job.name} failed: {found.error}")
        if found.way in (DIED, LAST_WORDS):
            self._end(worker)

    def _needs(self, job: Job) -> frozenset[Hashable]:
        if job.name not in self.needs_of:
            self.needs_of[job.name] = self.needs(job)
        return self.needs_of[job.name]

    def _idle(self) -> Compiler | None:
        """Return a process that has nothing to do, started now if need be; None where all do."""
        for worker in self.workers:
            if worker.job is None:
                return worker
        if not self.free:
            return None
        slot = self.free.pop(0)
        assert self.work is not None
        try:
            if self.scratch is None:
                self.scratch = tempfile.TemporaryDirectory(prefix="llmtrain-")
            work = functools.partial(apart, self.work)
            with signals_wait():
                self.workers.append(Compiler(slot, work, Path(self.scratch.name)))
        except OSError as error:  # no process or no file more
            self._tell(f"nothing is compiled ahead: {error}")
            return None
        return self.workers[-1]

    def _end(self, worker: Compiler) -> None:
        self.workers.remove(worker)
        worker.end()

    def _tell(self, line: str) -> None:
        if not self.has_told:
            self.tell(f"{line}; cells compile what they need themselves")
        self.has_told = True


def apart(work: Work, payload: dict[str, Any], report: Report) -> dict[str, Any]:
    """Do a job in a process group, which ends as one, and behind the cells that train."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    return work(payload, report)
