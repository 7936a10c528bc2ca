"""Budgets x shapes x seeds -> the cells of an IsoFLOP sweep, spread evenly in log N."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmtrain.spec.branching import share_trunk, spent_flops, trunk_id
from llmtrain.spec.config import ModelConfig
from llmtrain.spec.errors import ConfigError, PlanError
from llmtrain.spec.flops import param_groups
from llmtrain.spec.plan import RunPlan, plan_run, run_id
from llmtrain.spec.settings import SweepConfig, TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One run of a sweep, planned."""

    config: TrainConfig
    plan: RunPlan

    @property
    def run_id(self) -> str:
        """Name of the run, and of its folder."""
        return run_id(self.config)

    @property
    def spent(self) -> float:
        """FLOPs that this run executes itself: of a branch, its cooldown."""
        return spent_flops(self.config, self.plan)

    def overrides(self) -> list[str]:
        """Return what makes this cell out of the sweep's base configuration, for Hydra."""
        model, budget = self.config.model, self.config.budget
        shared = [] if trunk_id(self.config) is None else self._shared_overrides()
        return [
            f"model.d_model={model.d_model}",
            f"model.n_layers={model.n_layers}",
            f"model.d_head={model.d_head}",
            f"budget.flops={budget.flops!r}",
            f"seed={self.config.seed}",
            f"name={self.config.name}",
            *shared,
        ]

    def _shared_overrides(self) -> list[str]:
        """Return what a cell of a trunk has besides: its recipe's numbers, and where it begins."""
        checkpoint, numbers = self.config.checkpoint, dataclasses.asdict(self.config.recipe)
        del numbers["name"], numbers["lr_multiplier"]
        warmup_tokens = self.config.seq_len.warmup_tokens
        return [
            *(f"recipe.{key}={value!r}" for key, value in numbers.items()),
            f"seq_len.warmup_tokens={'null' if warmup_tokens is None else warmup_tokens}",
            f"checkpoint.branch_at={list(checkpoint.branch_at)}",
            f"checkpoint.branch_from={checkpoint.branch_from or 'null'}",
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """A cell that the planner refused."""

    d_model: int
    n_layers: int
    budget: float
    seed: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """All cells of a sweep, and those that cannot be trained."""

    cells: tuple[Cell, ...]
    refused: tuple[Refused, ...]


def expected_optimum(sweep: SweepConfig, flops: float) -> float:
    """Return the N around which the sizes of a budget are centred (no_input_embedding)."""
    return float(sweep.optimum_params * (flops / sweep.optimum_flops) ** sweep.optimum_exponent)


def choose_shapes(
    sweep: SweepConfig, model: ModelConfig, *, vocab_size: int, seq_len: int, flops: float
) -> list[ModelConfig]:
    """Return the shapes of one budget, smallest first, spread evenly in log N.

    Targets run from the expected optimum / span to the optimum * span; each takes the nearest
    shape that is still free, and of near equals the depth that is used least, so that width and
    depth both vary. Raises ConfigError where the ladder has fewer shapes than asked for.
    """
    sizes = {
        shape: param_groups(shape, vocab_size=vocab_size, seq_len=seq_len).counts()
        for shape in family(sweep, model)
    }
    if len(sizes) < sweep.sizes_per_budget:
        raise ConfigError(
            f"sweep.widths and sweep.depths make {len(sizes)} shapes within the aspect bounds, "
            f"fewer than sweep.sizes_per_budget={sweep.sizes_per_budget}; add widths or depths"
        )
    log_n = {shape: math.log(counts["no_input_embedding"]) for shape, counts in sizes.items()}
    centre = math.log(expected_optimum(sweep, flops))
    chosen: list[ModelConfig] = []
    for target in _spread(centre, math.log(sweep.span), sweep.sizes_per_budget):
        free = [shape for shape in log_n if shape not in chosen]
        used = [shape.n_layers for shape in chosen]
        chosen.append(
            min(
                free,
                key=lambda shape: (
                    round(abs(log_n[shape] - target) / 0.1),  # within 10 % counts as equal
                    used.count(shape.n_layers),
                    abs(log_n[shape] - target),
                ),
            )
        )
    return sorted(chosen, key=lambda shape: log_n[shape])


def family(sweep: SweepConfig, model: ModelConfig) -> list[ModelConfig]:
    """Return every width with every depth within the aspect bounds."""
    d_heads = {
        width: model.d_head if sweep.n_heads is None else width // sweep.n_heads
        for width in sweep.widths
    }
    return [
        dataclasses.replace(model, d_model=width, n_layers=depth, d_head=d_heads[width])
        for width in sweep.widths
        for depth in sweep.depths
        if sweep.aspect_min <= width / depth <= sweep.aspect_max
    ]


def plan_sweep(base: TrainConfig, sweep: SweepConfig, *, unique_tokens: int | None) -> Grid:
    """Return the planned cells of a sweep, and each cell the planner refused with its reason.

    `unique_tokens`: tokens of the training split; None before the data are prepared.
    """
    cells: list[Cell] = []
    refused: list[Refused] = []
    for flops in sweep.budgets:
        shapes = choose_shapes(
            sweep,
            base.model,
            vocab_size=base.data.vocab_size,
            seq_len=base.seq_len.seq_len,
            flops=flops,
        )
        budget = dataclasses.replace(base.budget, flops=flops, n_tokens=None)
        for shape in shapes:
            for seed in sweep.seeds:
                config = dataclasses.replace(
                    base, model=shape, budget=budget, seed=seed, name=sweep.name
                )
                try:
                    plan = plan_run(
                        config, vocab_size=config.data.vocab_size, unique_tokens=unique_tokens
                    )
                except PlanError as error:
                    refused.append(_refused(config, error))
                    continue
                cells.append(Cell(config=config, plan=plan))
    if sweep.branching:
        cells, more = _with_trunks(cells, unique_tokens)
        refused += more
    return Grid(cells=tuple(cells), refused=tuple(refused))


def _with_trunks(
    cells: Sequence[Cell], unique_tokens: int | None
) -> tuple[list[Cell], list[Refused]]:
    """Let the cells of each shape and seed share a trunk, and name those that cannot."""
    families: dict[tuple[ModelConfig, int], list[Cell]] = {}
    for cell in cells:
        families.setdefault((cell.config.model, cell.config.seed), []).append(cell)
    shared: list[Cell] = []
    refused: list[Refused] = []
    for members in families.values():
        runs = [(cell.config, cell.plan) for cell in members]
        found, without = share_trunk(runs, unique_tokens=unique_tokens)
        shared += [Cell(config=config, plan=plan) for config, plan in found]
        refused += [_refused(config, error) for config, error in without]
    return shared, refused


def _refused(config: TrainConfig, error: PlanError) -> Refused:
    return Refused(
        d_model=config.model.d_model,
        n_layers=config.model.n_layers,
        budget=config.budget.flops or 0.0,
        seed=config.seed,
        reason=str(error),
    )


def _spread(centre: float, reach: float, count: int) -> list[float]:
    """Return `count` points from centre - reach to centre + reach."""
    if count == 1:
        return [centre]
    return [centre + reach * (2 * i / (count - 1) - 1) for i in range(count)]
