"""What a parabola does to a curve that is none: the bias of Approach 2 on the very grid at hand.

Source: Czech et al. 2026 (arXiv 2603.22339): the loss falls more steeply on one side of its minimum
than it rises on the other, so the vertex of a fitted parabola lies off the minimum by an amount
that depends on how wide the grid is and where its centre lies.
"""

from dataclasses import dataclass, replace

import numpy as np

from llmtrain.scaling.cost import CostModel
from llmtrain.scaling.isoflop import Curve, IsoflopFit, Vertex, read_curves
from llmtrain.scaling.law import Array, LossLaw, fit_power_law
from llmtrain.spec.errors import FitRefusedError


@dataclass(frozen=True, kw_only=True, slots=True)
class GridBias:
    """Expected error of Approach 2 from its grid alone, and the fit without it."""

    budgets: tuple[float, ...]
    params_shift: tuple[float, ...]
    """ln of the vertex over the true optimum, per used budget."""
    tokens_shift: tuple[float, ...]
    exponent_shift: float
    """Expected error of a."""
    corrected: IsoflopFit


def correct_isoflop(
    fit: IsoflopFit, law: LossLaw, cost: CostModel, N: Array, D: Array, budget: Array
) -> GridBias:
    """Simulate the grid on `law` without noise, and subtract the vertices' shifts from the fit.

    Raises FitRefusedError where the simulated parabolas have no minimum either.
    """
    simulated = {c.budget: c for c in read_curves(N, D, law.loss(N, D), budget)}
    kept = [c for c in fit.used if np.isfinite(simulated[c.budget].params.x)]
    kept = [c for c in kept if np.isfinite(simulated[c.budget].tokens.x)]
    if len(kept) < 2:
        raise FitRefusedError("the fitted surface has no minima on this grid to correct with")
    budgets = np.array([curve.budget for curve in kept])
    n_true = cost.n_opt(law, budgets)
    n_shift = np.log([simulated[c.budget].params.x for c in kept]) - np.log(n_true)
    d_shift = np.log([simulated[c.budget].tokens.x for c in kept]) - np.log(
        cost.tokens(budgets, n_true)
    )
    moved = [
        _moved(curve, float(n), float(d))
        for curve, n, d in zip(kept, n_shift, d_shift, strict=True)
    ]
    corrected = IsoflopFit(
        name="approach2_corrected",
        curves=tuple(moved),
        params_law=fit_power_law(budgets, np.array([c.params.x for c in moved])),
        tokens_law=fit_power_law(budgets, np.array([c.tokens.x for c in moved])),
    )
    return GridBias(
        budgets=tuple(budgets.tolist()),
        params_shift=tuple(n_shift.tolist()),
        tokens_shift=tuple(d_shift.tolist()),
        exponent_shift=fit_power_law(budgets, np.exp(n_shift)).exponent,
        corrected=corrected,
    )


def _moved(curve: Curve, n_shift: float, d_shift: float) -> Curve:
    def shifted(vertex: Vertex, shift: float) -> Vertex:
        return replace(vertex, x=float(vertex.x * np.exp(-shift)))

    return replace(
        curve, params=shifted(curve.params, n_shift), tokens=shifted(curve.tokens, d_shift)
    )
