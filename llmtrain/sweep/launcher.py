"""The Hydra launcher `pool`: cells in warm worker processes, finished ones skipped."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from llmtrain.spec.build import build
from llmtrain.spec.check import check, check_between
from llmtrain.spec.errors import LlmtrainError
from llmtrain.spec.placement import placement
from llmtrain.spec.plan import run_id
from llmtrain.spec.rundir import run_directory
from llmtrain.spec.settings import TrainConfig, build_run
from llmtrain.sweep.ledger import is_done
from llmtrain.sweep.pool import Job, Outcome, Watcher, Work, make_slots, run_jobs


class SweepWatcher(Watcher):
    """A watcher that also hears how much there is to do; this one says nothing."""

    def opened(self, jobs: Sequence[Job], n_done: int, n_slots: int) -> None:
        """The sweep begins: what is left, and how many cells were finished before."""

    def submitted(self, job_id: str, n_cells: int, n_tasks: int, directory: Path) -> None:
        """The sweep has been handed to a cluster, which runs it when it can."""

    def closed(self) -> None:
        """The sweep is over."""


@dataclass
class Hands:
    """What the script puts into the launcher: training is none of this package's imports."""

    work: Work | None = None
    watcher: SweepWatcher = dataclasses.field(default_factory=SweepWatcher)
    drain: tuple[str, ...] = ()
    """The command that works off a file of cells; the file's name is added."""


HANDS = Hands()


class CellFailedError(LlmtrainError):
    """One or more cells of a sweep failed; the others are done."""


class CellLauncher(Launcher):
    """What our launchers share: every job is composed and checked before any of them runs."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take Hydra's context."""
        self.hydra_context = hydra_context
        self.config = config
        self.task_function = task_function

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Compose and check every job, then run them all; any sweeper can call this."""
        configs = [self.compose(overrides) for overrides in job_overrides]
        outcomes = self.run_cells(configs)
        returns: list[JobReturn] = []
        for overrides, outcome in zip(job_overrides, outcomes, strict=True):
            job = JobReturn(overrides=list(overrides))
            if outcome is None or outcome.error is None:
                job.status = JobStatus.COMPLETED
                job.return_value = None if outcome is None else outcome.result
            else:
                job.status = JobStatus.FAILED
                job.return_value = CellFailedError(f"{outcome.job.name}: {outcome.error}")
            returns.append(job)
        return returns

    def compose(self, overrides: Sequence[str]) -> TrainConfig:
        """Return one cell's configuration. Raises ConfigError."""
        loader = self.hydra_context.config_loader
        composed = loader.load_sweep_config(self.config, list(overrides))
        config = build_run(plain(composed))[0]
        refuse_teams(config)
        return config

    def run_cells(self, configs: Sequence[TrainConfig]) -> list[Outcome | None]:
        """Run the cells that have no record yet; a finished cell's outcome is None."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolConfig:
    """configs/hydra/launcher/pool.yaml."""

    per_device: int
    """Workers per GPU, or per core where there is none."""

    def __post_init__(self) -> None:
        """Refuse a pool without workers."""
        check_between("hydra.launcher.per_device", self.per_device, 1, 1024)


class PoolLauncher(CellLauncher):
    """Runs cells in a bounded pool of warm processes, one per GPU or core times `per_device`."""

    def __init__(self, per_device: int) -> None:
        self.per_device = build(PoolConfig, {"per_device": per_device}, "hydra.launcher").per_device

    def run_cells(self, configs: Sequence[TrainConfig]) -> list[Outcome | None]:
        """Run the cells that have no record yet; a finished cell's outcome is None."""
        assert HANDS.work is not None, "the script sets HANDS.work before Hydra starts"
        jobs = {run_directory(config): cell_job(config) for config in configs}
        to_do = {path: job for path, job in jobs.items() if not is_done(path)}
        slots = make_slots(self.per_device)
        watcher = HANDS.watcher
        watcher.opened(list(to_do.values()), len(jobs) - len(to_do), len(slots))
        try:
            outcomes = run_jobs(list(to_do.values()), HANDS.work, slots, watcher)
        finally:
            watcher.closed()
        by_path = dict(zip(to_do, outcomes, strict=True))
        return [by_path.get(run_directory(config)) for config in configs]


def cell_job(config: TrainConfig) -> Job:
    """Return the job that trains one cell."""
    return Job(
        name=run_id(config),
        payload={"config": dataclasses.asdict(config)},
        cost=config.budget.flops or config.budget.n_tokens or 0.0,
    )


def refuse_teams(config: TrainConfig) -> None:
    """Raise ConfigError for a sweep of runs over several devices, or a sweep under torchrun."""
    check(
        config.runtime.parallel == "none",
        f"runtime.parallel={config.runtime.parallel} is for one run under torchrun; a sweep trains "
        "one run per device: leave it at none",
    )
    placement("none")  # torchrun would start the whole sweep in every process


def plain(composed: DictConfig) -> dict[str, object]:
    """Return a composed configuration as a plain dictionary, without Hydra's own part."""
    raw = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(raw, dict)
    return {str(key): value for key, value in raw.items() if key != "hydra"}
