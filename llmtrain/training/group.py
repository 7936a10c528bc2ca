"""Runs of one shape trained as one, each in a directory, with a log and checkpoints of its own."""

import contextlib
import functools
from collections.abc import Callable, Sequence

from llmtrain.corpus.shards import Corpus
from llmtrain.spec.errors import LlmtrainError
from llmtrain.spec.plan import run_id
from llmtrain.spec.record import RunRecord
from llmtrain.spec.settings import TrainConfig
from llmtrain.training import runtime
from llmtrain.training.loop import open_run, planned
from llmtrain.training.parallel import ALONE
from llmtrain.training.progress import Progress, StepHook
from llmtrain.training.run import Run
from llmtrain.training.stacked import Stack

Ends = dict[str, RunRecord | LlmtrainError]
"""By run id: its record, or why it has none."""
GroupHook = Callable[[str, Progress], None]
"""Is told of the progress of a run, by its id."""


def train_group(
    configs: Sequence[TrainConfig],
    corpus: Corpus,
    *,
    on_progress: GroupHook = lambda _name, _progress: None,
    on_step: StepHook = lambda: None,
    ends: Ends | None = None,
) -> Ends:
    """Train runs that differ in seed and rate alone as one; return how each of them ended.

    Those that were done before are left out. One that fails, has failed before or is held elsewhere
    leaves the others to go on; one that had been stopped earlier than the others first catches up
    by itself. `ends` is filled as runs end, and tells of them where an error ends all others.
    """
    ends = {} if ends is None else ends
    runs: list[Run] = []
    with contextlib.ExitStack() as held:
        for config in configs:
            name = run_id(config)
            tell = functools.partial(on_progress, name)
            try:
                plan = planned(config, corpus)
                found = open_run(config, corpus, plan, ALONE, held, tell, on_step, retry=False)
            except LlmtrainError as error:
                ends[name] = error
            else:
                if isinstance(found, Run):
                    runs.append(found)
        _Group(runs, on_step, ends).finish()
    return ends


class _Group:
    """Runs that are still to be finished, and how the others ended."""

    def __init__(self, runs: list[Run], on_step: StepHook, ends: Ends) -> None:
        self.runs, self.on_step, self.ends = runs, on_step, ends

    def finish(self) -> None:
        """Train, evaluate and record all runs."""
        try:
            with runtime.stop_on_signals() as stop:
                for run in self.runs:
                    run.stop = stop
                self._train(stop)
                self._each(self._conclude)
        except BaseException as error:
            for run in self.runs:
                run.leave(error)
            raise

    def _each(self, action: Callable[[Run], None]) -> None:
        """Do something with every run; one that it fails for leaves the group."""
        for run in list(self.runs):
            try:
                action(run)
            except LlmtrainError as error:
                run.leave(error)
                self.ends[run.run_id] = error
                self.runs.remove(run)

    def _train(self, stop: runtime.StopRequest) -> None:
        furthest = max((run.session.step for run in self.runs), default=0)
        self._each(lambda run: run.train(furthest))
        while len(self.runs) > 1 and self._is_under_way():
            self._train_stack(stop)
        self._each(lambda run: run.train(run.plan.n_steps))

    def _is_under_way(self) -> bool:
        run = self.runs[0]
        return run.session.step < run.plan.n_steps

    def _train_stack(self, stop: runtime.StopRequest) -> None:
        """Take steps together until the last, or until a run leaves."""
        self._each(lambda run: run.saver.wait())  # a capture admits no other thread's CUDA calls
        if len(self.runs) < 2:
            return
        stack = Stack([run.session for run in self.runs])
        for _ in stack.warm_up():
            self.on_step()
        while len(self.runs) == len(stack.sessions) and self._is_under_way():
            stack.train_step()
            self.on_step()
            if self.runs[0].note_is_due():
                stack.settle()
            self._each(Run.note_step)
            due = any(run.saver.is_due(run.session.step) for run in self.runs)
            if due or stop.number:
                stack.settle()
            self._each(functools.partial(Run.save_or_stop, number=stop.number, save=due))

    def _conclude(self, run: Run) -> None:
        self.ends[run.run_id] = run.conclude(*run.evaluate_last())
