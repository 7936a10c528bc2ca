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
from llmtrain.spec.settings import TrainConfig
from llmtrain.spec.sweeps import SweepConfig
from llmtrain.sweep.centre import expected_params


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One run of a sweep, planned."""

    config: TrainConfig
    plan: RunPlan
    varied: tuple[str, ...] = ()
    """The overrides that tell its point of a product from the others, as in `optimizer=muon`."""

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
            f"recipe.lr_multiplier={self.config.recipe.lr_multiplier!r}",
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


def choose_shapes(
    sweep: SweepConfig,
    model: ModelConfig,
    *,
    vocab_size: int,
    seq_len: int,
    centre: float,
) -> list[ModelConfig]:
    """Return the shapes of one budget, smallest first, spread evenly in log N around `centre`.

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
    chosen: list[ModelConfig] = []
    for target in _spread(math.log(centre), math.log(sweep.span), sweep.sizes_per_budget):
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
    """Return every width with every depth within the aspect bounds.

    A ladder of one depth per width is `aspect_min` = `aspect_max` (nearly); a two-dimensional grid
    has them wide apart.
    """
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
    """Return the planned cells of a fixed grid or a rate bracket, and each refused one's reason.

    `unique_tokens`: tokens of the training split; None before the data are prepared.
    """
    found: list[Cell | Refused] = []
    shapes = family(sweep, base.model)
    for flops in sweep.budgets:
        centre = expected_params(sweep, shapes, base, flops)
        chosen = choose_shapes(
            sweep,
            base.model,
            vocab_size=base.data.vocab_size,
            seq_len=base.seq_len.seq_len,
            centre=centre,
        )
        factors = dict.fromkeys(chosen, (1.0,)) | (
            _bracketed(sweep, base, chosen, centre) if in_bracket(sweep, flops) else {}
        )
        found += [
            plan_cell(base, sweep, shape, flops, seed, factor, unique_tokens=unique_tokens)
            for shape in chosen
            for seed in sweep.seeds
            for factor in factors[shape]
        ]
    grid = as_grid(found)
    return _with_trunks(grid, unique_tokens) if sweep.branching else grid


def as_grid(found: Sequence[Cell | Refused]) -> Grid:
    """Sort planned from refused cells."""
    return Grid(
        cells=tuple(item for item in found if isinstance(item, Cell)),
        refused=tuple(item for item in found if isinstance(item, Refused)),
    )


def in_bracket(sweep: SweepConfig, flops: float) -> bool:
    """Return whether a budget gets several rates."""
    return sweep.mode == "lr_bracket" and flops in (sweep.bracket.budgets or sweep.budgets)


def plan_cell(
    base: TrainConfig,
    sweep: SweepConfig,
    shape: ModelConfig,
    flops: float,
    seed: int,
    factor: float = 1.0,
    *,
    unique_tokens: int | None,
) -> Cell | Refused:
    """Return a cell at `factor` times the recipe's rate, or why it cannot be trained."""
    recipe = dataclasses.replace(base.recipe, lr_multiplier=base.recipe.lr_multiplier * factor)
    budget = dataclasses.replace(base.budget, flops=flops, n_tokens=None)
    config = dataclasses.replace(
        base, model=shape, budget=budget, recipe=recipe, seed=seed, name=sweep.name
    )
    try:
        plan = plan_run(config, vocab_size=config.data.vocab_size, unique_tokens=unique_tokens)
        _refuse_rate(sweep, plan.hyper.peak_lr)
    except PlanError as error:
        return _refused(config, error)
    return Cell(config=config, plan=plan)


def _refuse_rate(sweep: SweepConfig, peak_lr: float) -> None:
    low, high = sweep.lr_min or 0.0, sweep.lr_max or math.inf
    if not low <= peak_lr <= high:
        bound = f"sweep.lr_min={low:g}" if peak_lr < low else f"sweep.lr_max={high:g}"
        raise PlanError(
            f"the recipe's rate {peak_lr:.3g} is outside {bound}; move the bound, or take another "
            "recipe or recipe.lr_multiplier"
        )


def _bracketed(
    sweep: SweepConfig, base: TrainConfig, chosen: Sequence[ModelConfig], centre: float
) -> dict[ModelConfig, tuple[float, ...]]:
    """Return the shapes nearest to the optimum and to a point on each arm, with all factors."""

    def distance(shape: ModelConfig, target: float) -> float:
        counts = param_groups(
            shape, vocab_size=base.data.vocab_size, seq_len=base.seq_len.seq_len
        ).counts()
        return abs(math.log(counts["no_input_embedding"] / target))

    free, picked = list(chosen), []
    for target in (centre, centre / sweep.bracket.arm, centre * sweep.bracket.arm):
        picked.append(min(free, key=lambda shape: distance(shape, target)))
        free.remove(picked[-1])
    return dict.fromkeys(picked, tuple(sorted(sweep.bracket.factors)))


def _with_trunks(grid: Grid, unique_tokens: int | None) -> Grid:
    """Let the cells of each shape and seed share a trunk, and name those that cannot."""
    families: dict[tuple[ModelConfig, int], list[Cell]] = {}
    for cell in grid.cells:
        families.setdefault((cell.config.model, cell.config.seed), []).append(cell)
    shared: list[Cell] = []
    refused = list(grid.refused)
    for members in families.values():
        runs = [(cell.config, cell.plan) for cell in members]
        found, without = share_trunk(runs, unique_tokens=unique_tokens)
        shared += [Cell(config=config, plan=plan) for config, plan in found]
        refused += [_refused(config, error) for config, error in without]
    return Grid(cells=tuple(shared), refused=tuple(refused))


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
