"""The Hydra launcher `pool`: cells in warm worker processes, finished ones skipped."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from llmtrain.spec.build import build
from llmtrain.spec.check import check, check_between, check_positive
from llmtrain.spec.compile_cache import cache_folders
from llmtrain.spec.errors import LlmtrainError
from llmtrain.spec.placement import placement
from llmtrain.spec.plan import run_id
from llmtrain.spec.rundir import read_state, run_directory
from llmtrain.spec.settings import TrainConfig, build_run
from llmtrain.sweep.ahead import Ahead
from llmtrain.sweep.drain import SweepWatcher, cell_job, cell_pool, drain
from llmtrain.sweep.ledger import is_passed_by, reopen
from llmtrain.sweep.pool import Pool, ahead_slots, make_slots
from llmtrain.sweep.process import Outcome, Work

RunConfigs = Callable[[Sequence[TrainConfig]], list[Outcome | None]]
"""Runs the cells that have no record yet; a finished cell's outcome is None."""


@dataclass
class Hands:
    """What the script puts into the launcher: training is none of this package's imports."""

    work: Work | None = None
    compiling: Work | None = None
    """Compiles what `work` would for the same payload, and trains nothing."""
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
        self.refuse(config)
        return config

    def refuse(self, config: TrainConfig) -> None:
        """Raise ConfigError for what this launcher cannot run, before any file is written."""
        refuse_teams(config)
        if config.runtime.compile:
            cache_folders()

    def run_cells(self, configs: Sequence[TrainConfig]) -> list[Outcome | None]:
        """Run the cells that have no record yet; a finished cell's outcome is None."""
        with self.opened() as run_cells:
            return run_cells(configs)

    def opened(self) -> contextlib.AbstractContextManager[RunConfigs]:
        """Return `run_cells` for several calls, in a `with` block: what they start stays warm."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolConfig:
    """configs/hydra/launcher/pool.yaml."""

    per_device: int
    """Workers per GPU, or per core where there is none."""
    hang_seconds: float | None
    """Seconds without a step after which a cell's worker is killed; null waits for ever."""
    compile_ahead: int
    """Processes beside the workers that compile for the next cells; needs runtime.compile=true."""

    def __post_init__(self) -> None:
        """Refuse a pool without workers, and a limit that is no time."""
        check_between("hydra.launcher.per_device", self.per_device, 1, 1024)
        check_between("hydra.launcher.compile_ahead", self.compile_ahead, 0, 64)
        check_hang_limit(self.hang_seconds)


class PoolLauncher(CellLauncher):
    """Runs cells in a bounded pool of warm processes, one per GPU or core times `per_device`."""

    def __init__(self, per_device: int, hang_seconds: float | None, compile_ahead: int) -> None:
        given = {
            "per_device": per_device,
            "hang_seconds": hang_seconds,
            "compile_ahead": compile_ahead,
        }
        self.pool = build(PoolConfig, given, "hydra.launcher")

    def refuse(self, config: TrainConfig) -> None:
        """Raise ConfigError for what this launcher cannot run, before any file is written."""
        super().refuse(config)
        check(
            self.pool.compile_ahead == 0 or config.runtime.compile,
            f"hydra.launcher.compile_ahead={self.pool.compile_ahead} has nothing to do with "
            "runtime.compile=false; set runtime.compile=true, or compile_ahead to 0",
        )

    @contextlib.contextmanager
    def opened(self) -> Iterator[RunConfigs]:
        """Give `run_cells` with workers that stay warm from call to call.

        A call returns when every cell has ended, here or in the hands of another process.
        """
        assert HANDS.work is not None, "the script sets HANDS.work before Hydra starts"
        slots = make_slots(self.pool.per_device)
        beside = ahead_slots(self.pool.compile_ahead, slots)
        ahead = Ahead(beside, HANDS.compiling, tell=HANDS.watcher.warned)
        with cell_pool(HANDS.work, slots, hang_s=self.pool.hang_seconds, ahead=ahead) as pool:
            yield functools.partial(run_in, pool)


def run_in(pool: Pool, configs: Sequence[TrainConfig]) -> list[Outcome | None]:
    """Run cells in a pool until all have ended, wherever; a finished cell's outcome is None."""
    reopen(configs)
    found = drain(configs, pool, HANDS.watcher, wait=True)
    ended = {outcome.job.name: outcome for outcome in found}
    return [ended.get(run_id(config)) or elsewhere(config) for config in configs]


def elsewhere(config: TrainConfig) -> Outcome | None:
    """Return None for a cell that was done before or by another process, else why it failed."""
    directory = run_directory(config)
    if not is_passed_by(directory):
        return None
    state, reason = read_state(directory)
    error = f"{state}: {reason}; retry=failed tries it again"
    return Outcome(job=cell_job(config), error=error, exit_code=1)


def check_hang_limit(hang_seconds: float | None) -> None:
    """Raise ConfigError for a limit that is no time."""
    if hang_seconds is not None:
        check_positive("hydra.launcher.hang_seconds", hang_seconds)


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
