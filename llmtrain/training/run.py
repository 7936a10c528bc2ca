"""A run in its directory: its steps, rows, evaluations, checkpoints and record, in their order."""

import contextlib
import gc
import signal
import time
from pathlib import Path
from typing import NoReturn

from llmtrain.board.mirror import Mirror, NoMirror, Row
from llmtrain.corpus.shards import Corpus
from llmtrain.spec import rundir
from llmtrain.spec.branching import FOLDER
from llmtrain.spec.disk import write_whole
from llmtrain.spec.errors import DiskError, InterruptedRunError, LlmtrainError
from llmtrain.spec.plan import RunPlan, run_id
from llmtrain.spec.record import RunRecord, write_record
from llmtrain.spec.settings import TrainConfig
from llmtrain.training import runtime
from llmtrain.training.checkpoint import clear_leftovers, load_checkpoint
from llmtrain.training.evaluate import Evaluation
from llmtrain.training.guard import RollBack
from llmtrain.training.parallel import Team
from llmtrain.training.progress import ProgressHook, StepHook, progress_of
from llmtrain.training.sample import SAMPLE_FILE, sample_text
from llmtrain.training.saver import CHECKPOINTS, Saver
from llmtrain.training.session import Session
from llmtrain.training.spending import Spending
from llmtrain.training.summary import (
    make_record,
    metrics_row,
    wandb_facts,
    wandb_spent,
    wandb_summary,
    wandb_tags,
)
from llmtrain.training.tracking import MetricsFile, NoMetricsFile, open_mirror
from llmtrain.training.trunk import keep_state, starting_state
from llmtrain.training.warm import warm_up

STOPPED = (InterruptedRunError, KeyboardInterrupt, DiskError, BrokenPipeError)
"""Errors that say nothing against the run: the same command goes on."""


class Run:
    """A run that is under way; its directory is this process's own."""

    def __init__(
        self,
        config: TrainConfig,
        corpus: Corpus,
        plan: RunPlan,
        directory: Path,
        team: Team,
        on_progress: ProgressHook | None,
        on_step: StepHook,
    ) -> None:
        self.config, self.corpus, self.plan, self.directory = config, corpus, plan, directory
        self.team, self.on_progress, self.on_step = team, on_progress, on_step
        self.run_id = run_id(config)
        begin = time.perf_counter()
        self.device = runtime.pick_device(config.runtime)
        runtime.reset_peak_memory(self.device)
        self.spending = Spending(directory, config.runtime, self.device, team)
        self.stop = runtime.StopRequest()
        self.log_every = max(1, plan.n_steps // config.tracking.points)
        self.evaluate_every = max(1, plan.n_steps // config.evaluation.points)
        self._begin(begin)

    def _begin(self, begin: float, *, goes_back: bool = False) -> None:
        """Start from the newest sound checkpoint; `begin`: when the set-up did."""
        config, plan = self.config, self.plan
        self.session = Session(config, plan, self.corpus, self.device, self.team)
        folders = (self.directory / CHECKPOINTS, self.directory / FOLDER)
        state, passed_over = load_checkpoint(folders[0], run_id=self.run_id)
        if self.team.leads:
            for folder in folders:
                clear_leftovers(folder)
            for line in passed_over:
                runtime.warn(line)
        shared, self.evaluating = None, False
        if state is not None:
            self.evaluating = state.get("evaluating", False)
            self.session.restore(state["session"])
        elif config.checkpoint.branch_from is not None:
            shared = starting_state(config, plan, self.corpus.manifest.data_id)
        self._open_logs(0 if state is None else state["metrics"])
        if shared is not None:
            self.session.branch(shared[0])
            for row in shared[1]:
                self._log(row)
        if not goes_back:  # what was undone was spent all the same: the meter counts on
            self.spending.count_on(self.session, 0.0 if state is None else state.get("joules"))
        self.session.seconds["setup"] += time.perf_counter() - begin
        self.saver = Saver(self.directory, self.run_id, config.checkpoint, self.team)

    def _open_logs(self, length: int) -> None:
        self.metrics: MetricsFile = NoMetricsFile()
        self.mirror: Mirror = NoMirror()
        if self.team.leads:
            self.metrics = MetricsFile(self.directory, length=length)
            self.mirror = open_mirror(
                self.config.tracking,
                directory=self.directory,
                run_id=self.run_id,
                family=self.config.name,
                tags=wandb_tags(self.config),
                facts=wandb_facts(self.config, self.plan, self.corpus),
            )

    def finish(self) -> RunRecord:
        """Train what is missing, evaluate, and leave the record as the last thing written."""
        with runtime.stop_on_signals() as self.stop:  # also while the files are closed
            try:
                final, text = self._train_and_evaluate()
            except BaseException as error:
                self.leave(error)
                raise
            return self.conclude(final, text)

    def _train_and_evaluate(self) -> tuple[Evaluation, str | None]:
        """Return what `evaluate_last` does; go back to a checkpoint where the guard orders it."""
        while True:
            try:
                self.train(self.plan.n_steps)
                return self.evaluate_last()
            except RollBack as order:
                if self.team.leads:
                    runtime.warn(str(order))
            self._go_back()

    def _go_back(self) -> None:
        begin = time.perf_counter()
        self.saver.wait()
        self.spending.note(self.session, "running")  # the way back may fail
        failed, spent = self.session.guard.failed, sum(self.session.seconds.values())
        self.metrics.close()
        self.mirror.finish({}, exit_code=InterruptedRunError.exit_code)
        del self.session
        gc.collect()  # the next one needs the memory
        self._begin(begin, goes_back=True)
        self.session.guard.failed = failed
        spent += time.perf_counter() - begin
        self.session.seconds["undone"] += max(0.0, spent - sum(self.session.seconds.values()))

    def train(self, until: int) -> None:
        """Take steps up to step `until`."""
        session = self.session
        self.spending.note(session, "running")
        if self.evaluating and session.step < self.plan.n_steps:
            self._evaluate_and_keep()  # where it was stopped
        if session.step < until:
            for _ in warm_up(session):
                self.on_step()
        while session.step < until:
            if session.guard.passes_over(session.step):
                session.pass_over()
            else:
                session.train_step()
            self.on_step()
            self.note_step()
            self.save_or_stop(*self.team.highest(self.stop.number, self.saver.is_due(session.step)))
        if until == self.plan.n_steps:
            session.check_weights()

    def note_is_due(self) -> bool:
        """Return whether the step just done is logged."""
        step = self.session.step
        return step == self.plan.n_steps or step % self.log_every == 0

    def note_step(self) -> None:
        """Log, evaluate and keep what is due after a step. Raises what the guard says of it."""
        self.session.check_step()
        if self.note_is_due():
            self._log_step()
        self._evaluate_and_keep()

    def _evaluate_and_keep(self) -> None:
        step = self.session.step
        if step < self.plan.n_steps and step % self.evaluate_every == 0:
            self._log_evaluation(self._evaluate())
        if step in self.config.checkpoint.branch_at:
            self._keep_for_branches()

    def save_or_stop(self, number: int, save: int) -> None:
        """Save where that is due or signal `number` came; that one raises InterruptedRunError.

        Raises what the save under way was refused for.
        """
        self.saver.check()
        if number:
            self._save_and_stop(number)
        if save and self.session.step < self.plan.n_steps:
            self._save()

    def evaluate_last(self) -> tuple[Evaluation, str | None]:
        """Return the evaluation that the record is about, and the sample."""
        self.spending.note(self.session, "trained")
        final = self._evaluate()
        text = None
        if self.config.evaluation.sample_tokens > 0:
            text = sample_text(self.session.model, self.corpus, self.config, self._stop_if_asked)
        self._log_evaluation(final)
        with self.session.timed("save"):
            self.saver.wait()  # nothing is under way when the run counts as evaluated
        self.spending.note(self.session, "evaluated")
        return final, text

    def conclude(self, final: Evaluation, text: str | None) -> RunRecord:
        """Leave the record, as the last thing written, and return it."""
        record = make_record(
            self.session,
            self.corpus,
            final,
            energy=self.spending.energy,
            metrics_sha256=self.metrics.close(),
        )
        record = self.team.lead(lambda: self._leave_record(record, text))
        self.mirror.finish(wandb_summary(record, self.config.bill))
        return record

    def _leave_record(self, record: RunRecord, text: str | None) -> RunRecord:
        if text is not None:
            write_whole(self.directory / SAMPLE_FILE, text + "\n")
        write_record(self.directory, record)
        rundir.note_done(self.directory)
        return record

    def leave(self, error: BaseException) -> None:
        """Close what is open and note how the run stands; what was trained is kept."""
        with contextlib.suppress(LlmtrainError):  # a full disk must not hide why the run ends
            self.saver.wait()
        with contextlib.suppress(DiskError):
            self.metrics.close()
        again = isinstance(error, STOPPED)
        again |= runtime.is_out_of_memory(error)
        reason = str(error) or type(error).__name__
        spent, summary = None, {}
        if (session := getattr(self, "session", None)) is not None:  # none: no way back
            spent = self.spending.at_the_end(session, error)
            summary = wandb_spent(spent, self.config.bill)
        if self.team.leads:  # not `lead`: the others may be gone
            with contextlib.suppress(DiskError):
                rundir.write_state(self.directory, "stopped" if again else "failed", reason, spent)
        self.mirror.finish(summary, exit_code=getattr(error, "exit_code", 1))

    def _stop_if_asked(self) -> None:
        (number,) = self.team.highest(self.stop.number)
        if number:
            self._save_and_stop(number)

    def _save_and_stop(self, number: int) -> NoReturn:
        self._save()
        self.saver.wait()
        raise InterruptedRunError(
            f"{signal.Signals(number).name} at step {self.session.step} of {self.plan.n_steps}; "
            f"saved in {self.directory}; run the same command to go on"
        )

    def _log_step(self) -> None:
        row = metrics_row(self.session, self.session.drain_losses())
        self.spending.energy.joules()
        self._log(row)
        if self.on_progress is not None:
            self.on_progress(progress_of(row, self.plan.n_steps))

    def _evaluate(self) -> Evaluation:
        self.evaluating = True  # until the row is written
        result = self.session.evaluate(self._stop_if_asked)
        self.on_step()
        return result

    def _log_evaluation(self, result: Evaluation) -> None:
        self._log(self.session.clock() | {"val/loss": result.loss, "val/bpb": result.bpb})
        self.evaluating = False

    def _log(self, row: Row) -> None:
        self.metrics.write(row)
        self.mirror.log(row)

    def _keep_for_branches(self) -> None:
        data_id = self.corpus.manifest.data_id
        with self.session.saving():
            self.saver.wait()
            state = self.session.state()
            self.team.lead(
                lambda: keep_state(self.directory, self.config, self.plan, data_id, state)
            )

    def _save(self) -> None:
        with self.session.saving():
            state = {
                "session": self.session.state(),
                "metrics": self.metrics.length(),
                "evaluating": self.evaluating,
                "joules": self.spending.joules(self.session),
            }
            self.saver.save(self.session.step, state)
        self.spending.note(self.session, self.spending.state)
        self.on_step()
