"""The Hydra sweeper `isoflop`: a sweep's grid, or any product of overrides, checked as a whole."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from llmtrain.corpus.manifest import read_manifest
from llmtrain.corpus.prepare import known_tokens, prepare
from llmtrain.spec.errors import ConfigError
from llmtrain.spec.nested import flatten
from llmtrain.spec.plan import plan_run
from llmtrain.spec.record import read_record
from llmtrain.spec.rundir import run_directory
from llmtrain.spec.settings import TrainConfig, build_launch, build_run
from llmtrain.spec.sweeps import LaunchConfig, SweepConfig
from llmtrain.spec.words import plural
from llmtrain.sweep.grid import Cell, Grid, plan_sweep
from llmtrain.sweep.launcher import HANDS, CellFailedError, CellLauncher, plain, refuse_teams
from llmtrain.sweep.ledger import cell_status, facts, reopen, write_sweep
from llmtrain.sweep.process import Outcome
from llmtrain.sweep.rounds import AdaptiveSweep
from llmtrain.sweep.select import select, with_trunks

IN_RUN_ID = ("seed", "budget.flops", "budget.n_tokens", "model.d_model", "model.n_layers")


class IsoflopSweeper(Sweeper):
    """Hydra's sweeper `isoflop`.

    Chooses the cells of `sweep=...`; without one it multiplies the overrides out as Hydra does.

    Every cell is composed, built and planned before the first one starts.
    """

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take Hydra's context and make the launcher."""
        self.loader = hydra_context.config_loader
        self.master = config
        self.runner: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.refuse = self.runner.refuse if isinstance(self.runner, CellLauncher) else refuse_teams

    def sweep(self, arguments: list[str]) -> object:
        """Run every cell. Raises CellFailedError after all others are done, and ConfigError."""
        composed = [(p, self._compose(p)) for p in self._product(arguments)]
        points = [(p, *build_run(raw), build_launch(raw)) for p, raw in composed]
        for _, base, *_ in points:
            self.refuse(base)
        adaptive = [(o, b, s, w) for o, b, s, w in points if s is not None and s.mode == "adaptive"]
        if adaptive:
            refuse_shared_folders([(b, s) for _, b, s, _ in adaptive], len(points))
            failures: dict[str, str] = {}
            for point in adaptive:
                failures |= self._run_adaptive(*point)
            if failures:
                name, reason = next(iter(failures.items()))
                raise CellFailedError(
                    f"{plural(len(failures), 'cell')} failed, the others are done; first: "
                    f"{name}: {reason}"
                )
            return None
        if isinstance(self.runner, CellLauncher):  # another one trains every point
            refuse_twins([(base, sweep) for _, base, sweep, _ in points])
        varied = varied_overrides([overrides for overrides, *_ in points])
        every: list[tuple[list[str], Cell]] = []
        plans: dict[Path, list[Grid]] = {}
        for overrides, base, sweep, launch in points:
            grid = plan_point(base, sweep, write=not launch.dry_run)
            told = tuple(override for override in overrides if override in varied)
            grid = replace(grid, cells=tuple(replace(cell, varied=told) for cell in grid.cells))
            name = base.name if sweep is None else sweep.name
            plans.setdefault(Path(base.runs_root) / name, []).append(grid)
            every += [([*overrides, *cell.overrides()], cell) for cell in grid.cells]
        only = [item for *_, launch in points for item in launch.only]
        all_cells = [cell for _, cell in every]
        chosen = {cell.run_id for cell in with_trunks(select(all_cells, only), all_cells)}
        cells = [(overrides, cell) for overrides, cell in every if cell.run_id in chosen]
        if not cells:
            refused = [item for grids in plans.values() for grid in grids for item in grid.refused]
            raise ConfigError(
                f"no cell of this sweep can be trained: {refused[0].reason} (the first of "
                f"{plural(len(refused), 'cell')}; scripts/plan.py says why)"
            )
        unique = list({cell.run_id: cell for _, cell in cells}.values())
        retry = any(launch.retry == "failed" for *_, launch in points)
        if any(launch.dry_run for *_, launch in points):
            found = [cell_status(run_directory(cell.config), facts(cell)) for cell in unique]
            left_out = ("done",) if retry else ("done", "quarantined")
            to_do = [cell for cell in found if cell.state not in left_out]
            HANDS.watcher.would_run(to_do, [cell for cell in found if cell.state in left_out])
            return []
        for directory, grids in plans.items():
            write_sweep(directory, grids)
        if retry:
            reopen([cell.config for cell in unique], quarantined=True)
        if isinstance(self.runner, CellLauncher):
            outcomes = self.runner.run_cells([cell.config for cell in unique])
            raise_failures(outcomes)
            return outcomes
        returns = self.runner.launch([overrides for overrides, _ in cells], initial_job_idx=0)
        return [job.return_value for job in returns]  # raises the first failure

    def _run_adaptive(
        self, overrides: list[str], base: TrainConfig, sweep: SweepConfig, launch: LaunchConfig
    ) -> dict[str, str]:
        """Run an adaptive sweep's rounds; return why cells failed, by run id."""
        if launch.dry_run or launch.only:
            raise ConfigError(
                "sweep.mode=adaptive chooses its cells as it goes, so only= and dry_run= do not "
                "apply; scripts/plan.py prints its first round"
            )
        AdaptiveSweep(base, sweep, unique_tokens=None).first_round()  # before any file
        tokens = read_manifest(prepare(base.data)).train.n_tokens
        rounds = AdaptiveSweep(base, sweep, unique_tokens=tokens)
        rounds.first_round()

        opened = self.runner.opened() if isinstance(self.runner, CellLauncher) else nullcontext()
        with opened as run:

            def run_cells(cells: Sequence[Cell]) -> dict[str, str]:
                if launch.retry == "failed":
                    reopen([cell.config for cell in cells], quarantined=True)
                if run is not None:
                    outcomes = run([cell.config for cell in cells])
                    return {o.job.name: o.error for o in outcomes if o is not None and o.error}
                jobs = [[*overrides, *cell.overrides()] for cell in cells]
                self.runner.launch(jobs, initial_job_idx=0)
                lost = [c for c in cells if read_record(run_directory(c.config)) is None]
                return {cell.run_id: "left no record" for cell in lost}

            return rounds.run(run_cells, HANDS.watcher.decided)

    def _compose(self, overrides: Sequence[str]) -> dict[str, object]:
        return plain(self.loader.load_sweep_config(self.master, list(overrides)))

    def _product(self, arguments: list[str]) -> list[list[str]]:
        parser = OverridesParser.create(config_loader=self.loader)
        parsed = parser.parse_overrides(arguments)
        return BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]


def refuse_shared_folders(
    adaptive: Sequence[tuple[TrainConfig, SweepConfig]], n_points: int
) -> None:
    """Raise ConfigError where a product makes adaptive sweeps that would share their rounds."""
    folders = {(base.runs_root, sweep.name) for base, sweep in adaptive}
    if len(folders) < n_points:
        raise ConfigError(
            f"{n_points} points of this product share {len(folders)} sweep.name with "
            "sweep.mode=adaptive; start one command for each, with its own sweep.name"
        )


def refuse_twins(points: Sequence[tuple[TrainConfig, SweepConfig | None]]) -> None:
    """Raise ConfigError where two points of a product are one run id under different settings.

    Cells that two points have in common to the last setting are trained once.
    """
    seen: dict[str, TrainConfig] = {}
    for base, sweep in points if len(points) > 1 else ():
        for cell in plan_point(base, sweep, write=False).cells:
            first = seen.setdefault(cell.run_id, cell.config)
            if first != cell.config:
                one, other = (flatten(asdict(c), ".") for c in (first, cell.config))
                key = next(key for key in one if one[key] != other[key])
                raise ConfigError(
                    f"{key}={one[key]} and {key}={other[key]} make one run, {cell.run_id}: {key} "
                    "does not decide its result, so one of the two would not be trained; keep one "
                    "value, or start one command for each with a name of its own"
                )


def varied_overrides(points: Sequence[Sequence[str]]) -> set[str]:
    """Return the settings of a run that some points of a product have, and no run id tells."""
    shared = set(points[0]).intersection(*points[1:])
    every = {override for point in points for override in point}
    keys = {override: override.partition("=")[0].lstrip("+") for override in every - shared}
    return {
        override
        for override, key in keys.items()
        if key not in IN_RUN_ID and key.partition(".")[0] != "sweep"
    }


def plan_point(base: TrainConfig, sweep: SweepConfig | None, *, write: bool = True) -> Grid:
    """Return the cells of one configuration: its sweep's grid, or the one run that it is.

    Prepares the corpus where it is absent, unless it must not `write`. Raises PlanError for a
    single run that cannot be.
    """

    def tokens() -> int | None:
        return (
            read_manifest(prepare(base.data)).train.n_tokens if write else known_tokens(base.data)
        )

    if sweep is not None:
        first = plan_sweep(base, sweep, unique_tokens=None)
        if not first.cells:  # before any file
            return first
        return plan_sweep(base, sweep, unique_tokens=tokens())
    plan_run(base, vocab_size=base.data.vocab_size, unique_tokens=None)
    plan = plan_run(base, vocab_size=base.data.vocab_size, unique_tokens=tokens())
    return Grid(cells=(Cell(config=base, plan=plan),), refused=())


def raise_failures(outcomes: Sequence[Outcome | None]) -> None:
    """Raise CellFailedError if a cell failed, with the first reason and how many there are."""
    failed = [o for o in outcomes if o is not None and o.error is not None]
    if failed:
        raise CellFailedError(
            f"{len(failed)} of {plural(len(outcomes), 'cell')} failed, the others are done; first: "
            f"{failed[0].job.name}: {failed[0].error}"
        )
