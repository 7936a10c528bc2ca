"""One method's answer on one table of runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llmtrain.scaling.bootstrap import Interval, LawDraws, PowerDraws, interval
from llmtrain.scaling.cost import CostModel
from llmtrain.scaling.envelope import EnvelopeFit
from llmtrain.scaling.interaction import InteractionFit
from llmtrain.scaling.isoflop import IsoflopFit
from llmtrain.scaling.parametric import ParametricFit
from llmtrain.spec.errors import FitRefusedError

Fit = EnvelopeFit | InteractionFit | IsoflopFit | ParametricFit
METHODS = {
    "approach1_hull": "Approach 1, convex hull",
    "approach1_curves": "Approach 1, hull of curves",
    "approach1_smoothed": "Approach 1, smoothed curves",
    "approach2": "Approach 2, parabolas",
    "approach2_robust": "Approach 2, without outliers",
    "approach2_corrected": "Approach 2, grid bias removed",
    "approach2_akima": "Approach 2, Akima",
    "approach2_local3": "Approach 2, 3 points at the minimum",
    "approach2_local5": "Approach 2, 5 points at the minimum",
    "approach2_local7": "Approach 2, 7 points at the minimum",
    "approach3": "Approach 3, Huber on ln L",
    "projection": "projection, squares of L",
    "log_squares": "surface, squares of ln L",
    "interaction": "surface with a term in N and D",
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Estimate:
    """One method's answer, or why it has none."""

    name: str
    status: Literal["accepted", "refused"]
    reason: str
    """Why it is refused; empty for an accepted one."""
    fit: Fit | None
    draws: LawDraws | PowerDraws | None
    a: float | None
    """Exponent of N_opt in the recorded FLOPs."""
    b: float | None
    a_interval: Interval | None
    b_interval: Interval | None
    n_runs: int

    @property
    def title(self) -> str:
        """Name for readers."""
        return METHODS[self.name]

    @property
    def width(self) -> float:
        """Width of the interval of a; infinite where there is none."""
        return np.inf if self.a_interval is None else self.a_interval.high - self.a_interval.low


def attempt(
    name: str,
    method: Callable[[], tuple[Fit, LawDraws | PowerDraws, str]],
    cost: CostModel,
    n_runs: int,
) -> Estimate:
    """Run a method; a refusal becomes an estimate with the reason."""
    try:
        fit, draws, reason = method()
    except FitRefusedError as error:
        return Estimate(
            name=name,
            status="refused",
            reason=str(error),
            fit=None,
            draws=None,
            a=None,
            b=None,
            a_interval=None,
            b_interval=None,
            n_runs=n_runs,
        )
    if isinstance(draws, LawDraws) and isinstance(fit, ParametricFit):
        a_draws = cost.exponent(draws.alpha, draws.beta)
        a = float(cost.exponent(fit.law.alpha, fit.law.beta))
        stretch = 1.0 + cost.slope
        b, b_draws = 1.0 - stretch * a, 1.0 - stretch * a_draws
    else:
        assert isinstance(draws, PowerDraws)
        assert not isinstance(fit, ParametricFit)
        a, b, a_draws, b_draws = fit.a, fit.b, draws.a, draws.b
    return Estimate(
        name=name,
        status="refused" if reason else "accepted",
        reason=reason,
        fit=fit,
        draws=draws,
        a=a,
        b=b,
        a_interval=interval(a_draws),
        b_interval=interval(b_draws),
        n_runs=n_runs,
    )


def refuse_all(reason: str, cost: CostModel, n_runs: int) -> tuple[Estimate, ...]:
    """Return the estimates of a table that no method may fit, each refused for one `reason`."""

    def refuse() -> tuple[Fit, PowerDraws, str]:
        raise FitRefusedError(reason)

    names = ("approach1_hull", "approach2", "approach3", "projection", "log_squares")
    return tuple(attempt(name, refuse, cost, n_runs) for name in names)
