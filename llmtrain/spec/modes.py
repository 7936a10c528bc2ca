"""The modes of a sweep beside the fixed grid: what an adaptive sweep and a rate bracket ask for."""

from dataclasses import dataclass
from typing import Literal

from llmtrain.spec.check import check, check_between, check_positive

MIN_SIZES = 4
"""Sizes below which a parabola on an IsoFLOP curve has nothing left to be checked by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptiveConfig:
    """When an adaptive sweep adds cells, and when it stops."""

    method: Literal["approach2", "surface"]
    """Whose interval of a is to shrink: parabolas per budget, or the loss surface."""
    first_sizes: int
    """Cells with which a budget is opened, spread over the span."""
    cells_per_round: int
    """Cells added in a round once every minimum is bracketed."""
    width: float | None
    """Stop once the 90 % interval of a is this narrow; null does not ask."""
    forecast_sd: float | None
    """Stop once ln L at forecast_flops is known to this standard deviation; null does not ask."""
    forecast_flops: float | None
    """Budget of the forecast; null: ten times the largest of the sweep."""
    max_flops: float | None
    """Most FLOPs that all cells together may cost; null: no cap."""
    max_rounds: int
    """Rounds after which it stops whatever was reached."""

    def __post_init__(self) -> None:
        """Refuse a sweep that could not begin or would not end."""
        check_between("sweep.adaptive.first_sizes", self.first_sizes, MIN_SIZES, 1000)
        check_between("sweep.adaptive.cells_per_round", self.cells_per_round, 1, 1000)
        check_between("sweep.adaptive.max_rounds", self.max_rounds, 1, 1000)
        for field in ("width", "forecast_sd", "forecast_flops", "max_flops"):
            if getattr(self, field) is not None:
                check_positive(f"sweep.adaptive.{field}", getattr(self, field))
        asked = (self.width, self.forecast_sd, self.max_flops)
        check(
            any(limit is not None for limit in asked),
            "sweep.adaptive would end at max_rounds only: set width, forecast_sd or max_flops",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class BracketConfig:
    """Which cells of a rate bracket are trained at which rates."""

    budgets: tuple[float, ...]
    """Budgets of the sweep that get a bracket; empty: all of them."""
    factors: tuple[float, ...]
    """Factors on the recipe's rate, 1 among them."""
    arm: float
    """The arms' cells lie at the expected optimum / arm and times arm."""

    def __post_init__(self) -> None:
        """Refuse factors that make no bracket."""
        for factor in self.factors:
            check_positive("sweep.bracket.factors", factor)
        check(
            len(set(self.factors)) == len(self.factors)
            and min(self.factors, default=1.0) < 1.0 < max(self.factors, default=1.0)
            and 1.0 in self.factors,
            f"sweep.bracket.factors={list(self.factors)} must hold 1 and rates on both sides of "
            "it, each once, as in [0.5, 1, 2]",
        )
        check(self.arm > 1, f"sweep.bracket.arm={self.arm!r} must be above 1")
