"""What the analyst chose, in one table: each row is one choice made otherwise and refitted."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from llmtrain.scaling.cost import CostModel, fit_cost
from llmtrain.scaling.estimate import Estimate
from llmtrain.scaling.isoflop import IsoflopFit, fit_isoflop
from llmtrain.scaling.law import Array
from llmtrain.scaling.parametric import FitOptions, ParametricFit, fit_parametric
from llmtrain.scaling.runs import Runs
from llmtrain.spec.errors import FitRefusedError

DELTAS = (1e-4, 1e-3, 1e-2, float("inf"))
"""Corners of the Huber loss that the table goes through; infinity is squares."""
AS_IT_STANDS = "as it stands"


@dataclass(frozen=True, kw_only=True, slots=True)
class Variation:
    """The same runs under one other choice."""

    fit: str
    """Title of the method."""
    change: str
    """What differs from the method as it stands."""
    a: float | None
    """Null where the fit is refused; `reason` says why."""
    params: float | None
    """N at the target budget, in the row's own counts of N and C."""
    reason: str


Answer = tuple[float, float]
"""Exponent a, and N at the target."""


def vary(
    estimates: list[Estimate],
    runs: Runs,
    outliers: NDArray[np.bool_],
    cost: CostModel,
    C: float,
) -> list[Variation]:
    """Return each of the accepted `estimates` as it stands, then under every other choice.

    N as the runs count it otherwise for Approach 2 and surfaces; C otherwise, other Huber corners
    and residuals of L for surfaces alone: runs of one budget differ in another count of C. The row
    without `outliers`, a mask of `runs`, is refitted without them.
    """
    found = []
    for estimate in estimates:
        fit = estimate.fit
        if isinstance(fit, ParametricFit):
            choices = _of_surface(fit, runs, cost, C)
        elif isinstance(fit, IsoflopFit):
            own = runs.take(~outliers) if fit.name == "approach2_robust" else runs
            choices = _of_isoflop(fit, own, C)
        else:
            continue
        found += [_answer(estimate.title, change, method) for change, method in choices.items()]
    return found


def _answer(title: str, change: str, method: Callable[[], Answer]) -> Variation:
    try:
        a, params = method()
    except FitRefusedError as error:
        return Variation(fit=title, change=change, a=None, params=None, reason=str(error))
    return Variation(fit=title, change=change, a=a, params=params, reason="")


def _of_isoflop(fit: IsoflopFit, runs: Runs, C: float) -> dict[str, Callable[[], Answer]]:
    def read(own: IsoflopFit) -> Answer:
        return own.a, float(own.params_law.at(C))

    def again(name: str) -> Answer:
        other = runs.counted_as(name)
        return read(fit_isoflop(other.params, other.tokens, other.loss, other.budget))

    choices: dict[str, Callable[[], Answer]] = {AS_IT_STANDS: lambda: read(fit)}
    if fit.name in ("approach2", "approach2_robust"):
        choices |= {
            f"N: {name}": partial(again, name) for name in _others(runs.counts, runs.params)
        }
    return choices


def _of_surface(
    fit: ParametricFit, runs: Runs, cost: CostModel, C: float
) -> dict[str, Callable[[], Answer]]:
    def read(own: ParametricFit, cost: CostModel = cost, C: float = C) -> Answer:
        return float(cost.exponent(own.law.alpha, own.law.beta)), float(cost.n_opt(own.law, C))

    def refit(table: Runs, options: FitOptions) -> ParametricFit:
        return fit_parametric(table.params, table.tokens, table.loss, options)

    def counted(name: str) -> Answer:
        other = runs.counted_as(name)
        own_cost = fit_cost(other.params, other.tokens, other.flops)
        return read(refit(other, fit.options), own_cost)

    def costed(name: str) -> Answer:
        flops = runs.flops_counts[name]
        # The same training as C buys, in the other count: as the largest runs compare.
        large = runs.flops >= 0.5 * runs.flops.max()
        ratio = float(np.median((flops / runs.flops)[large]))
        return read(fit, fit_cost(runs.params, runs.tokens, flops), C * ratio)

    choices: dict[str, Callable[[], Answer]] = {AS_IT_STANDS: lambda: read(fit)}
    choices |= {f"N: {name}": partial(counted, name) for name in _others(runs.counts, runs.params)}
    choices |= {
        f"C: {name}": partial(costed, name) for name in _others(runs.flops_counts, runs.flops)
    }
    own = fit.options
    for delta in DELTAS:
        if delta != own.delta:
            changed = replace(own, delta=delta)
            choices[_loss(changed)] = lambda changed=changed: read(refit(runs, changed))  # type: ignore[misc]
    other = replace(own, link="linear" if own.link == "log" else "log")
    choices[_loss(other)] = lambda: read(refit(runs, other))
    return choices


def _loss(options: FitOptions) -> str:
    kind = "squares" if np.isinf(options.delta) else f"Huber corner {options.delta:g}"
    return f"{kind} of {'ln L' if options.link == 'log' else 'L'}"


def _others(counts: dict[str, Array], own: Array) -> list[str]:
    """Return the counts that differ from the one the fits use."""
    return [name for name, column in counts.items() if not np.array_equal(column, own)]
