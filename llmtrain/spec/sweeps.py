"""What a sweep is: its budgets, shapes, seeds and mode; and which of its cells a call is about."""

import math
from dataclasses import dataclass
from typing import Literal

from llmtrain.spec.check import check, check_between, check_name, check_positive
from llmtrain.spec.modes import AdaptiveConfig, BracketConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """An IsoFLOP family: which sizes are trained at which budgets."""

    name: str
    """Name of the family: the folder under runs_root and the wandb group."""
    budgets: tuple[float, ...]
    """Training FLOPs of each IsoFLOP curve, under budget.convention."""
    widths: tuple[int, ...]
    """d_model of the shapes to choose from."""
    depths: tuple[int, ...]
    """n_layers of the shapes to choose from; every width meets every depth."""
    n_heads: int | None
    """Attention heads of every shape; null keeps model.d_head and lets their number grow."""
    aspect_min: float
    """Leave out shapes whose d_model / n_layers is smaller."""
    aspect_max: float
    """Leave out shapes whose d_model / n_layers is larger."""
    sizes_per_budget: int
    """Cells of one curve, spread evenly in log N."""
    span: float
    """The curve reaches from the expected optimum / span to the expected optimum * span."""
    optimum_flops: float
    """Budget at which the expected optimum is known."""
    optimum_params: float
    """Expected optimal N there (no_input_embedding count)."""
    optimum_exponent: float
    """a of N_opt = optimum_params * (C / optimum_flops)^a."""
    seeds: tuple[int, ...]
    """Every cell is trained once for each seed."""
    mode: Literal["fixed", "adaptive", "lr_bracket"]
    """The grid; or cells added round by round; or the grid with some cells at several rates."""
    law: str | None
    """Printed law or law.json that gives the expected optimum; null: the three optimum_ keys."""
    lr_min: float | None
    """Refuse cells whose peak rate is smaller; null does not ask."""
    lr_max: float | None
    """Refuse cells whose peak rate is larger; null does not ask."""
    adaptive: AdaptiveConfig
    """mode=adaptive."""
    bracket: BracketConfig
    """mode=lr_bracket."""
    branching: bool
    """Cells of one shape and seed share a constant-rate trunk and cool down from it at each budget;
    needs schedule=wsd."""

    def __post_init__(self) -> None:
        """Refuse empty, repeated or impossible lists."""
        check_name("sweep.name", self.name)
        for field in ("budgets", "widths", "depths", "seeds"):
            values = getattr(self, field)
            check(len(values) > 0, f"sweep.{field} is empty: name at least one")
            check(
                len(set(values)) == len(values), f"sweep.{field}={list(values)} names a value twice"
            )
        for field in ("budgets", "widths", "depths"):
            for value in getattr(self, field):
                check_positive(f"sweep.{field}", value)
        if self.n_heads is not None:
            check_positive("sweep.n_heads", self.n_heads)
        for field in ("aspect_min", "aspect_max", "optimum_flops", "optimum_params"):
            check_positive(f"sweep.{field}", getattr(self, field))
        check(
            math.isfinite(self.span) and self.span > 1, f"sweep.span={self.span!r} must be above 1"
        )
        check_between("sweep.optimum_exponent", self.optimum_exponent, 0.0, 1.0)
        check_between("sweep.sizes_per_budget", self.sizes_per_budget, 1, 1000)
        for field in ("lr_min", "lr_max"):
            if getattr(self, field) is not None:
                check_positive(f"sweep.{field}", getattr(self, field))
        check(
            self.lr_min is None or self.lr_max is None or self.lr_min < self.lr_max,
            f"sweep.lr_min={self.lr_min!r} must be below sweep.lr_max={self.lr_max!r}",
        )
        check(self.law != "", "sweep.law is empty: name a printed law or a law.json, or null")
        self._check_mode()

    def _check_mode(self) -> None:
        """Refuse a mode whose own settings do not fit the sweep's."""
        check(
            not self.branching or self.mode == "fixed",
            f"sweep.branching shares one rate among cells known beforehand; sweep.mode={self.mode} "
            "does not have them: use sweep.mode=fixed",
        )
        if self.mode == "adaptive":
            check(
                len(self.budgets) >= 3,
                f"sweep.mode=adaptive fits an exponent: sweep.budgets={list(self.budgets)} must "
                "name at least 3",
            )
            opening = self.adaptive.first_sizes * sum(self.budgets)
            cap = self.adaptive.max_flops
            check(
                cap is None or cap >= opening,
                f"sweep.adaptive.max_flops={cap!r} is less than first_sizes cells at every budget "
                f"cost, {opening:.4g}; raise it, or leave out the largest budget",
            )
            target = self.adaptive.forecast_flops
            check(
                target is None or target >= max(self.budgets),
                f"sweep.adaptive.forecast_flops={target!r} must not be below the largest budget",
            )
        if self.mode == "lr_bracket":
            strange = [value for value in self.bracket.budgets if value not in self.budgets]
            check(not strange, f"sweep.bracket.budgets={strange} must be among sweep.budgets")
            check(
                self.sizes_per_budget >= 3,
                f"sweep.sizes_per_budget={self.sizes_per_budget} must be 3 or more for a bracket "
                "at the optimum and on both arms",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchConfig:
    """Which cells of a sweep this call is about; no part of any run."""

    only: tuple[str, ...]
    """Run ids, globs over them, regular expressions (re:...), or budgets; empty takes all cells."""
    retry: Literal["none", "failed"]
    """failed: cells in quarantine are tried again too."""
    dry_run: bool
    """Print what would be trained and write nothing."""
