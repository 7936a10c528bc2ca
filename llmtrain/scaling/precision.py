"""How well the runs so far know the exponent or a forecast, and what one run more would tell.

A fit is linearised: free constants with covariance S, target rows t, and for every possible run a
Jacobian row j; `design.variance_gain` then ranks runs. Two fits can be asked: Approach 2 (the three
constants of each budget's parabola; the exponent is the slope of the vertices) and the loss surface
(its five constants). Intervals are Student's t with the residuals' degrees of freedom, so that few
runs do not look precise by luck.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from llmtrain.scaling.bootstrap import COVERAGE, Interval
from llmtrain.scaling.cost import CostModel, fit_cost
from llmtrain.scaling.design import (
    MIN_NOISE,
    after_run,
    law_jacobian,
    parameter_covariance,
    variance_gain,
)
from llmtrain.scaling.diagnose import CONDITION_LIMIT
from llmtrain.scaling.isoflop import Curve, fit_isoflop
from llmtrain.scaling.law import Array, LossLaw
from llmtrain.scaling.parametric import FitOptions, fit_parametric
from llmtrain.spec.errors import FitRefusedError

COST_POWER = 1.0
"""Variance gained per FLOP: the directional derivative of a design whose total cost is given."""
SQUARES = FitOptions(delta=np.inf)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Cells:
    """Runs, or cells that could be run: columns of equal length."""

    params: Array
    tokens: Array
    flops: Array
    """What each costs, under the budget's convention."""
    budget: Array


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Local:
    """A fit, linearised at its optimum."""

    a: float
    """Exponent of N_opt in the budget's FLOPs."""
    noise: float
    """Standard deviation of a run about the fit: nats (Approach 2), or of ln L (surface)."""
    degrees: int
    """Runs less free constants."""
    covariance: Array
    """Of the constants, shape (k, k)."""
    exponent_row: Array
    """d a / d constants, shape (k,)."""
    forecast_row: Array | None
    """d ln L(target) / d constants, shape (k,); null where the fit has no forecast."""
    rows: Callable[[Cells], Array]
    """Jacobian rows of cells, shape (n, k)."""

    def sd(self, row: Array) -> float:
        """Return the standard deviation of the target that `row` belongs to."""
        return float(np.sqrt(row @ self.covariance @ row))

    @property
    def interval(self) -> Interval:
        """The 90 % interval of a."""
        reach = float(stdtrit(self.degrees, (1 + COVERAGE) / 2)) * self.sd(self.exponent_row)
        return Interval(low=self.a - reach, high=self.a + reach)


def local_isoflop(runs: Cells, loss: Array) -> Local:
    """Linearise Approach 2. Raises FitRefusedError where it does, or no degree of freedom is left.

    Only budgets with their minimum inside their sizes count; cells of others have rows of zeros.
    """
    fit = fit_isoflop(runs.params, runs.tokens, loss, runs.budget)
    curves = fit.used
    width = 3 * len(curves)
    own = np.isin(runs.budget, [curve.budget for curve in curves])
    degrees = int(own.sum()) - width
    if degrees < 1:
        raise FitRefusedError(
            f"{int(own.sum())} runs leave {width} constants of parabolas no scatter to measure; "
            "add runs"
        )

    def rows(cells: Cells) -> Array:
        found = np.zeros((len(cells.params), width))
        for k, curve in enumerate(curves):
            here = cells.budget == curve.budget
            found[here, 3 * k : 3 * k + 3] = np.vander(_u(cells.params[here], curve), 3)
        return found

    fitted = np.concatenate([curve.params.coefficients for curve in curves])
    design = rows(runs)[own]
    residuals = loss[own] - design @ fitted
    noise = max(float(np.sqrt(residuals @ residuals / degrees)), MIN_NOISE)
    log_c = np.log([curve.budget for curve in curves])
    weight = (log_c - log_c.mean()) / ((log_c - log_c.mean()) ** 2).sum()
    row = np.zeros(width)
    for k, curve in enumerate(curves):
        p, q, _ = curve.params.coefficients
        row[3 * k : 3 * k + 2] = weight[k] * np.array([q / (2 * p * p), -1.0 / (2 * p)])
    return Local(
        a=fit.a,
        noise=noise,
        degrees=degrees,
        covariance=np.asarray(np.linalg.inv(design.T @ design) * noise**2),
        exponent_row=row,
        forecast_row=None,
        rows=rows,
    )


def local_surface(runs: Cells, loss: Array, target_flops: float) -> Local:
    """Linearise the loss surface, fitted by least squares of ln L, with its forecast.

    Raises FitRefusedError where the runs do not identify it: too few, a constant at a limit, or a
    Jacobian condition above the analysis's limit.
    """
    fit = fit_parametric(runs.params, runs.tokens, loss, SQUARES)
    proof, law = fit.certificate, fit.law
    degrees = len(loss) - 5
    if proof.at_bounds or proof.condition > CONDITION_LIMIT or degrees < 1:
        limits = f"{', '.join(proof.at_bounds)} at a limit, " if proof.at_bounds else ""
        raise FitRefusedError(
            f"the surface is not identified by {len(loss)} runs: {limits}condition "
            f"{proof.condition:.3g} (limit {CONDITION_LIMIT:g}); spread D/N wider"
        )
    residuals = fit.residuals(runs.params, runs.tokens, loss)
    noise = max(float(np.sqrt(residuals @ residuals / degrees)), MIN_NOISE)
    cost = fit_cost(runs.params, runs.tokens, runs.flops)
    n_target = cost.n_opt(law, target_flops)
    target = (np.atleast_1d(n_target), np.atleast_1d(cost.tokens(target_flops, n_target)))
    return Local(
        a=float(cost.exponent(law.alpha, law.beta)),
        noise=noise,
        degrees=degrees,
        covariance=parameter_covariance(law, runs.params, runs.tokens, noise),
        exponent_row=_exponent_row(law, cost),
        forecast_row=law_jacobian(law, *target)[0],
        rows=lambda cells: law_jacobian(law, cells.params, cells.tokens),
    )


def cheapest_precision(
    local: Local, row: Array, cells: Cells, *, n_cells: int, enough: float, max_flops: float
) -> list[tuple[int, float]]:
    """Choose cells one by one by the variance of the target `row` gained per FLOP.

    Returns indices with the share of variance that each takes away; a cell may come again, as
    another seed. Stops at `n_cells`, at `max_flops` in all, or once the target's standard deviation
    is `enough` times what it is now.
    """
    if len(cells.params) == 0:
        return []
    rows, covariance = local.rows(cells), local.covariance
    start = before = float(row @ covariance @ row)
    chosen: list[tuple[int, float]] = []
    while len(chosen) < n_cells and (not chosen or before > enough**2 * start):
        gain = variance_gain(covariance, row[None], rows, local.noise) / cells.flops**COST_POWER
        gain = np.where(cells.flops <= max_flops, gain, 0.0)
        best = int(gain.argmax())
        if gain[best] <= 0.0:
            break
        covariance = after_run(covariance, rows[best], local.noise)
        max_flops -= float(cells.flops[best])
        after = float(row @ covariance @ row)
        chosen.append((best, 1.0 - after / before))
        before = after
    return chosen


def _exponent_row(law: LossLaw, cost: CostModel) -> Array:
    """Return d a / d(E, ln A, ln B, alpha, beta) of a = beta / (alpha + beta (1 + slope))."""
    below = (law.alpha + law.beta * (1.0 + cost.slope)) ** 2
    return np.array([0.0, 0.0, 0.0, -law.beta / below, law.alpha / below])


def _u(params: Array, curve: Curve) -> Array:
    return np.asarray(np.log(params) - curve.params.centre)
