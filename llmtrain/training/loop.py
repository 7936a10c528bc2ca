"""One run, from its plan to its record."""

import contextlib
from pathlib import Path

from llmtrain.corpus.shards import Corpus
from llmtrain.spec import rundir
from llmtrain.spec.errors import MismatchError, RunLockedError
from llmtrain.spec.plan import RunPlan, plan_run
from llmtrain.spec.record import RunRecord, read_record
from llmtrain.spec.room import refuse_room
from llmtrain.spec.settings import TrainConfig
from llmtrain.training import runtime
from llmtrain.training.loss_head import refuse_missing_head
from llmtrain.training.parallel import Team, joined
from llmtrain.training.progress import ProgressHook, StepHook
from llmtrain.training.run import Run
from llmtrain.training.trunk import check_branches


def train(
    config: TrainConfig,
    corpus: Corpus,
    *,
    on_progress: ProgressHook | None = None,
    on_step: StepHook = lambda: None,
    retry: bool = True,
) -> RunRecord:
    """Train, evaluate and record one run; return its record, at once where it is already there.

    `on_step` is called after every step, evaluation and save, as a sign of life. A run that failed
    before is tried again, unless `retry` is off: then RunLockedError says that it has ended.
    Continues from the newest sound checkpoint. Started by torchrun, every process calls this and
    the one that leads writes all files. Raises PlanError, RunLockedError, MismatchError,
    DivergedError, DiskError, or InterruptedRunError after a signal, when the state has been saved.
    """
    plan = planned(config, corpus)
    with joined(config.runtime) as team, contextlib.ExitStack() as held:
        found = open_run(config, corpus, plan, team, held, on_progress, on_step, retry=retry)
        return found.finish() if isinstance(found, Run) else found


def planned(config: TrainConfig, corpus: Corpus) -> RunPlan:
    """Return the plan of a run on this text and this machine. Raises PlanError, ConfigError."""
    plan = plan_run(
        config,
        vocab_size=corpus.manifest.vocab_size,
        unique_tokens=corpus.manifest.train.n_tokens,
    )
    check_branches(config, plan)
    runtime.refuse_missing_gpu(config.runtime)
    refuse_missing_head(config.runtime)
    return plan


def open_run(
    config: TrainConfig,
    corpus: Corpus,
    plan: RunPlan,
    team: Team,
    held: contextlib.ExitStack,
    on_progress: ProgressHook | None,
    on_step: StepHook,
    *,
    retry: bool,
) -> Run | RunRecord:
    """Return a run in its directory, locked until `held` ends, or its record where it is done.

    Raises RunLockedError where another process has it or, without `retry`, has failed with it.
    """
    directory = rundir.run_directory(config)
    team.lead(lambda: held.enter_context(rundir.hold(directory)))
    if (done := team.lead(lambda: read_record(directory))) is not None:
        _check(done, corpus, directory)
        team.lead(lambda: rundir.note_done(directory))
        return done
    if not retry:
        team.lead(lambda: _refuse_failed(directory))
    team.lead(lambda: refuse_room(directory, [(config, plan)]))
    team.lead(lambda: rundir.begin(directory, config, plan, corpus.manifest.data_id))
    return Run(config, corpus, plan, directory, team, on_progress, on_step)


def _refuse_failed(directory: Path) -> None:
    """Raise RunLockedError where the run failed, perhaps while this process waited for the lock."""
    state, reason = rundir.read_state(directory)
    if state in rundir.PASSED_BY:
        raise RunLockedError(f"{directory} has failed: {reason}; start its sweep again to retry it")


def _check(record: RunRecord, corpus: Corpus, directory: Path) -> None:
    if record.data_id != corpus.manifest.data_id:
        raise MismatchError(
            f"{directory} was trained on data {record.data_id[:12]}, now it is "
            f"{corpus.manifest.data_id[:12]}; move the folder away to train it again"
        )
