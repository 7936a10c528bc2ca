"""One run, from its plan to its record."""

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
from llmtrain.spec.errors import DiskError, InterruptedRunError, MismatchError
from llmtrain.spec.plan import RunPlan, plan_run, run_id
from llmtrain.spec.record import RunRecord, read_record, write_record
from llmtrain.spec.room import refuse_room
from llmtrain.spec.settings import TrainConfig
from llmtrain.training import runtime
from llmtrain.training.checkpoint import clear_leftovers, load_checkpoint, save_checkpoint
from llmtrain.training.energy import EnergyMeter
from llmtrain.training.evaluate import Evaluation
from llmtrain.training.guard import RollBack
from llmtrain.training.parallel import Team, joined
from llmtrain.training.progress import Progress, ProgressHook, StepHook
from llmtrain.training.sample import SAMPLE_FILE, sample_text
from llmtrain.training.session import Session
from llmtrain.training.summary import (
    joules_so_far,
    make_record,
    metrics_row,
    wandb_facts,
    wandb_summary,
    wandb_tags,
)
from llmtrain.training.tracking import MetricsFile, NoMetricsFile, open_mirror
from llmtrain.training.trunk import check_branches, keep_state, starting_state

CHECKPOINTS = "checkpoints"


def train(
    config: TrainConfig,
    corpus: Corpus,
    *,
    on_progress: ProgressHook | None = None,
    on_step: StepHook = lambda: None,
) -> RunRecord:
    """Train, evaluate and record one run; return its record, at once where it is already there.

    `on_step` is called after every step, evaluation and save, as a sign of life.
    Continues from the newest sound checkpoint. Started by torchrun, every process calls this and
    the one that leads writes all files. Raises PlanError, RunLockedError, MismatchError,
    DivergedError, DiskError, or InterruptedRunError after a signal, when the state has been saved.
    """
    plan = plan_run(
        config,
        vocab_size=corpus.manifest.vocab_size,
        unique_tokens=corpus.manifest.train.n_tokens,
    )
    check_branches(config, plan)
    directory = rundir.run_directory(config)
    with joined(config.runtime) as team, contextlib.ExitStack() as held:
        team.lead(lambda: held.enter_context(rundir.hold(directory)))
        if (done := team.lead(lambda: read_record(directory))) is not None:
            _check(done, corpus, directory)
            team.lead(lambda: _end(directory))
            return done
        team.lead(lambda: refuse_room(directory, [(config, plan)]))
        team.lead(lambda: rundir.begin(directory, config, plan, corpus.manifest.data_id))
        return _Run(config, corpus, plan, directory, team, on_progress, on_step).finish()


def _check(record: RunRecord, corpus: Corpus, directory: Path) -> None:
    if record.data_id != corpus.manifest.data_id:
        raise MismatchError(
            f"{directory} was trained on data {record.data_id[:12]}, now it is "
            f"{corpus.manifest.data_id[:12]}; move the folder away to train it again"
        )


def _end(directory: Path) -> None:
    """Note that a run is done, where that has not been noted: after a kill behind its record."""
    if rundir.read_state(directory)[0] != "done":
        rundir.write_state(directory, "done")


class _Run:
    """A run in its directory: the session, its metrics and its checkpoints."""

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
        self.energy = EnergyMeter(self.device)
        self.log_every = max(1, plan.n_steps // config.tracking.points)
        self.evaluate_every = max(1, plan.n_steps // config.evaluation.points)
        self._begin(begin)

    def _begin(self, begin: float) -> None:
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
            joules = state.get("joules")  # of all devices together
            self.energy.start_from(joules and joules / self.team.n_devices)
        elif config.checkpoint.branch_from is not None:
            shared = starting_state(config, plan, self.corpus.manifest.data_id)
        self._open_logs(0 if state is None else state["metrics"])
        if shared is not None:
            self.session.branch(shared[0])
            for row in shared[1]:
                self._log(row)
        self.session.seconds["setup"] += time.perf_counter() - begin
        self.saved_at = time.monotonic()

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
                self._note_state("running")
                final, text = self._train_and_evaluate()
                self._note_state("evaluated")
            except BaseException as error:
                self._leave(error)
                raise
            record = make_record(
                self.session,
                self.corpus,
                final,
                energy=self.energy,
                metrics_sha256=self.metrics.close(),
            )
            record = self.team.lead(lambda: self._leave_record(record, text))
            self.mirror.finish(wandb_summary(record, self.config.bill))
        return record

    def _sample(self) -> str | None:
        if self.config.evaluation.sample_tokens == 0:
            return None
        return sample_text(self.session.model, self.corpus, self.config, self._stop_if_asked)

    def _leave_record(self, record: RunRecord, text: str | None) -> RunRecord:
        if text is not None:
            write_whole(self.directory / SAMPLE_FILE, text + "\n")
        write_record(self.directory, record)
        _end(self.directory)
        return record

    def _note_state(self, state: str) -> None:
        self.team.lead(lambda: rundir.write_state(self.directory, state))

    def _leave(self, error: BaseException) -> None:
        """Close what is open and note how the run stands; what was trained is kept."""
        with contextlib.suppress(DiskError):  # a full disk must not hide why the run ends
            self.metrics.close()
        again = isinstance(error, InterruptedRunError | KeyboardInterrupt | DiskError)
        again |= runtime.is_out_of_memory(error)
        reason = str(error) or type(error).__name__
        if self.team.leads:  # not `lead`: the others may be gone
            with contextlib.suppress(DiskError):
                rundir.write_state(self.directory, "stopped" if again else "failed", reason)
        self.mirror.finish({}, exit_code=getattr(error, "exit_code", 1))

    def _train_and_evaluate(self) -> tuple[Evaluation, str | None]:
        """Return the final evaluation and the sample.

        Goes back to a checkpoint as often as the guard orders it.
        """
        while True:
            try:
                self._train()
                self._note_state("trained")
                final = self._evaluate()
                text = self._sample()
                self._log_evaluation(final)
                return final, text
            except RollBack as order:
                if self.team.leads:
                    runtime.warn(str(order))
            self._go_back()

    def _go_back(self) -> None:
        begin = time.perf_counter()
        failed = self.session.guard.failed
        self.metrics.close()
        self.mirror.finish({}, exit_code=InterruptedRunError.exit_code)
        del self.session
        gc.collect()  # the next one needs the memory
        self._begin(begin)
        self.session.guard.failed = failed
        self._note_state("running")

    def _train(self) -> None:
        session, plan = self.session, self.plan
        while session.step < plan.n_steps:
            if not self.evaluating:  # a run that was stopped in an evaluation goes on there
                if session.guard.passes_over(session.step):
                    session.pass_over()
                else:
                    session.train_step()
                session.check_step()
                self.on_step()
            last = session.step == plan.n_steps
            if not self.evaluating and (last or session.step % self.log_every == 0):
                self._log_step()
            if self.evaluating or (not last and session.step % self.evaluate_every == 0):
                self._log_evaluation(self._evaluate())
            if session.step in self.config.checkpoint.branch_at:
                self._keep_for_branches()
            number, save = self.team.highest(self.stop.number, self._save_is_due())
            if number:
                self._save_and_stop(number)
            if save and not last:
                self._save()
        session.check_weights()

    def _stop_if_asked(self) -> None:
        (number,) = self.team.highest(self.stop.number)
        if number:
            self._save_and_stop(number)

    def _save_and_stop(self, number: int) -> NoReturn:
        self._save()
        raise InterruptedRunError(
            f"{signal.Signals(number).name} at step {self.session.step} of {self.plan.n_steps}; "
            f"saved in {self.directory}; run the same command to go on"
        )

    def _log_step(self) -> None:
        session = self.session
        loss = session.drain_losses()
        row = metrics_row(session, loss)
        self.energy.joules()
        self._log(row)
        if self.on_progress is not None:
            self.on_progress(
                Progress(
                    step=session.step,
                    n_steps=self.plan.n_steps,
                    loss=loss,
                    lr=float(row["train/lr"]),
                    seq_len=int(row["train/seq_len"]),
                    tokens_per_second=float(row["train/tokens_per_second"]),
                    mfu=row.get("train/mfu"),
                )
            )

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
        with self.session.timed("save"):
            state = self.session.state()
            self.team.lead(
                lambda: keep_state(self.directory, self.config, self.plan, data_id, state)
            )

    def _save_is_due(self) -> bool:
        every = self.config.checkpoint.every_steps
        if every is not None and self.session.step % every == 0:
            return True
        return time.monotonic() - self.saved_at >= self.config.checkpoint.every_s

    def _save(self) -> None:
        with self.session.timed("save"):
            state = {
                "session": self.session.state(),
                "metrics": self.metrics.length(),
                "evaluating": self.evaluating,
                "joules": joules_so_far(self.session, self.energy),
            }
            self.team.lead(
                lambda: save_checkpoint(
                    self.directory / CHECKPOINTS,
                    run_id=self.run_id,
                    step=self.session.step,
                    state=state,
                    keep=self.config.checkpoint.keep,
                )
            )
        self.saved_at = time.monotonic()
        self.on_step()
