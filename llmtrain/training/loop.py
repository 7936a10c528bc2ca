"""One run, from its plan to its record."""

import contextlib
import signal
import time
from pathlib import Path

from llmtrain.board.mirror import Mirror, NoMirror, Row
from llmtrain.corpus.shards import Corpus
from llmtrain.spec import rundir
from llmtrain.spec.errors import DivergedError, InterruptedRunError, MismatchError
from llmtrain.spec.plan import RunPlan, plan_run, run_id
from llmtrain.spec.record import RunRecord, read_record, write_record
from llmtrain.spec.settings import TrainConfig
from llmtrain.training import runtime
from llmtrain.training.checkpoint import load_checkpoint, save_checkpoint
from llmtrain.training.energy import EnergyMeter
from llmtrain.training.evaluate import Evaluation
from llmtrain.training.parallel import Team, joined
from llmtrain.training.progress import Progress, ProgressHook, StepHook
from llmtrain.training.sample import SAMPLE_FILE, sample_text
from llmtrain.training.session import Session
from llmtrain.training.summary import (
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

    `on_step` is called after every step and evaluation, as a sign of life.
    Continues from the newest sound checkpoint. Started by torchrun, every process calls this and
    the one that leads writes all files. Raises PlanError, RunLockedError, MismatchError,
    DivergedError, or InterruptedRunError after a signal, when the state has been saved.
    """
    plan = plan_run(
        config,
        vocab_size=corpus.manifest.vocab_size,
        unique_tokens=corpus.manifest.train.n_tokens,
    )
    check_branches(config, plan)
    runtime.refuse_missing_gpu(config.runtime)
    with joined(config.runtime) as team, contextlib.ExitStack() as held:
        found = open_run(config, corpus, plan, team, held, on_progress, on_step)
        return found.finish() if isinstance(found, Run) else found


def open_run(
    config: TrainConfig,
    corpus: Corpus,
    plan: RunPlan,
    team: Team,
    held: contextlib.ExitStack,
    on_progress: ProgressHook | None,
    on_step: StepHook,
) -> "Run | RunRecord":
    """Return a run in its directory, locked until `held` ends, or its record where it is done."""
    directory = rundir.run_directory(config)
    team.lead(lambda: held.enter_context(rundir.hold(directory)))
    if (done := team.lead(lambda: read_record(directory))) is not None:
        return _checked(done, corpus, directory)
    team.lead(lambda: rundir.begin(directory, config, plan, corpus.manifest.data_id))
    return Run(config, corpus, plan, directory, team, on_progress, on_step)


def _checked(record: RunRecord, corpus: Corpus, directory: Path) -> RunRecord:
    if record.data_id != corpus.manifest.data_id:
        raise MismatchError(
            f"{directory} was trained on data {record.data_id[:12]}, now it is "
            f"{corpus.manifest.data_id[:12]}; move the folder away to train it again"
        )
    return record


class Run:
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
        device = runtime.pick_device(config.runtime)
        self.energy = EnergyMeter(device)
        self.session = Session(config, plan, corpus, device, team)
        state, passed_over = load_checkpoint(directory / CHECKPOINTS, run_id=self.run_id)
        if team.leads:
            for line in passed_over:
                runtime.warn(line)
        shared = None
        if state is not None:
            self.session.restore(state["session"])
        elif config.checkpoint.branch_from is not None:
            shared = starting_state(config, plan, corpus.manifest.data_id)
        self._open_logs(0 if state is None else state["metrics"])
        if shared is not None:
            self.session.branch(shared[0])
            for row in shared[1]:
                self._log(row)
        self.session.seconds["setup"] += time.perf_counter() - begin
        self.log_every = max(1, plan.n_steps // config.tracking.points)
        self.evaluate_every = max(1, plan.n_steps // config.evaluation.points)
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
        try:
            with runtime.stop_on_signals() as stop:
                self.train(stop, self.plan.n_steps)
                final = self.evaluate_last()
        except BaseException as error:
            self.leave(error)
            raise
        return self.conclude(final)

    def evaluate_last(self) -> Evaluation:
        """Return the evaluation that the record is about."""
        self.note_state("trained")
        final = self._log_evaluation()
        self.note_state("evaluated")
        return final

    def conclude(self, final: Evaluation) -> RunRecord:
        """Leave the record, as the last thing written, and return it."""
        text = None
        if self.config.evaluation.sample_tokens > 0:
            text = sample_text(self.session.model, self.corpus, self.config)
        record = make_record(
            self.session,
            self.corpus,
            final,
            energy=self.energy,
            metrics_sha256=self.metrics.close(),
        )
        record = self.team.lead(lambda: self._leave_record(record, text))
        self.mirror.finish(wandb_summary(record))
        return record

    def _leave_record(self, record: RunRecord, text: str | None) -> RunRecord:
        if text is not None:
            (self.directory / SAMPLE_FILE).write_text(text + "\n", encoding="utf-8")
        write_record(self.directory, record)
        rundir.write_state(self.directory, "done")
        return record

    def note_state(self, state: str) -> None:
        """Write how far the run is."""
        self.team.lead(lambda: rundir.write_state(self.directory, state))

    def leave(self, error: BaseException) -> None:
        """Close what is open and note how the run stands; what was trained is kept."""
        self.metrics.close()
        again = isinstance(error, InterruptedRunError) or runtime.is_out_of_memory(error)
        reason = str(error) or type(error).__name__
        if self.team.leads:  # not `lead`: the others may be gone
            rundir.write_state(self.directory, "stopped" if again else "failed", reason)
        self.mirror.finish({}, exit_code=getattr(error, "exit_code", 1))

    def train(self, stop: runtime.StopRequest, until: int) -> None:
        """Take steps up to step `until`."""
        if self.session.step >= until:
            return
        self.note_state("running")
        for _ in self.session.warm_up():
            self.on_step()
        while self.session.step < until:
            self.session.train_step()
            self.on_step()
            self.note_step()
            self.save_or_stop(*self.team.highest(stop.number, self.save_is_due()))

    def note_is_due(self) -> bool:
        """Return whether the step just done is logged."""
        step = self.session.step
        return step == self.plan.n_steps or step % self.log_every == 0

    def note_step(self) -> None:
        """Log, evaluate and keep what is due after a step. Raises DivergedError."""
        session = self.session
        if self.note_is_due():
            self._log_step()
        if session.step < self.plan.n_steps and session.step % self.evaluate_every == 0:
            self._log_evaluation()
        if session.step in self.config.checkpoint.branch_at:
            self._keep_for_branches()

    def save_or_stop(self, stopped_by: int, save: int) -> None:
        """Save where that is due or a signal came; the latter raises InterruptedRunError then."""
        session = self.session
        if session.step == self.plan.n_steps:
            return
        if stopped_by:
            self._save()
            name = signal.Signals(stopped_by).name
            raise InterruptedRunError(
                f"{name} at step {session.step} of {self.plan.n_steps}; saved in "
                f"{self.directory}; run the same command to go on"
            )
        if save:
            self._save()

    def _log_step(self) -> None:
        session = self.session
        loss = session.drain_losses()
        if not (loss < float("inf") and bool(session.grad_norm.isfinite())):
            raise DivergedError(
                f"loss {loss} with gradient norm {float(session.grad_norm)} within the "
                f"{self.log_every} steps before step {session.step}; lower recipe.lr_multiplier"
            )
        row = metrics_row(session, loss)
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
                )
            )

    def _log_evaluation(self) -> Evaluation:
        session = self.session
        result = session.evaluate()
        self._log(session.clock() | {"val/loss": result.loss, "val/bpb": result.bpb})
        self.on_step()
        return result

    def _log(self, row: Row) -> None:
        self.metrics.write(row)
        self.mirror.log(row)

    def _keep_for_branches(self) -> None:
        with self.session.saving():
            state = self.session.state()
            self.team.lead(
                lambda: keep_state(
                    self.directory, self.config, self.plan, self.corpus.manifest.data_id, state
                )
            )

    def save_is_due(self) -> bool:
        """Return whether a checkpoint is."""
        every = self.config.checkpoint.every_steps
        if every is not None and self.session.step % every == 0:
            return True
        return time.monotonic() - self.saved_at >= self.config.checkpoint.every_s

    def _save(self) -> None:
        with self.session.saving():
            state = {"session": self.session.state(), "metrics": self.metrics.length()}
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
