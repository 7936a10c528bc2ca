"""Which runs carry the exponent: everything left out in turn, in one batch."""

from dataclasses import dataclass

import numpy as np

from llmtrain.scaling.bootstrap import Interval, refit_weights
from llmtrain.scaling.cost import CostModel
from llmtrain.scaling.law import Array
from llmtrain.scaling.parametric import ParametricFit
from llmtrain.scaling.runs import Labels, Runs

HIGHEST = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """The exponent a with one kind of unit left out in turn."""

    kind: str
    """run, model, budget, or the five highest losses."""
    n_units: int
    range_of_a: Interval
    worst: str
    """Unit whose absence moves a most."""
    shift: float
    """By how much, signed."""


def leave_out(fit: ParametricFit, runs: Runs, cost: CostModel) -> tuple[LeftOut, ...]:
    """Return how a moves when each run, model or budget leaves, and without the highest losses.

    The rows of `runs` are those of `fit`; units without a converged fit are passed over.
    """
    plain = float(cost.exponent(fit.law.alpha, fit.law.beta))
    kinds: list[tuple[str, Labels | Array, Labels | Array]] = [
        ("run", runs.run_id, np.unique(runs.run_id)),
        ("model", runs.params, np.unique(runs.params)),
        ("budget", runs.budget, runs.budgets),
    ]
    found = []
    for kind, labels, units in kinds:
        if 2 < len(units) <= 2000:
            weights = (labels[None, :] != units[:, None]).astype(np.float64)
            names = [f"{unit:.4g}" if kind != "run" else str(unit) for unit in units]
            found.append(_summarise(fit, runs, cost, plain, kind, names, weights))
    if len(runs) > 3 * HIGHEST:
        weights = np.ones((1, len(runs)))
        weights[0, np.argsort(runs.loss)[-HIGHEST:]] = 0.0
        kind = f"the {HIGHEST} highest losses"
        found.append(_summarise(fit, runs, cost, plain, kind, [kind], weights))
    return tuple(item for item in found if item is not None)


def _summarise(
    fit: ParametricFit,
    runs: Runs,
    cost: CostModel,
    plain: float,
    kind: str,
    names: list[str],
    weights: Array,
) -> LeftOut | None:
    theta, usable = refit_weights(fit, runs.params, runs.tokens, runs.loss, weights)
    if not usable.any():
        return None
    a = cost.exponent(theta[usable, 3], theta[usable, 4])
    worst = int(np.abs(a - plain).argmax())
    return LeftOut(
        kind=kind,
        n_units=len(names),
        range_of_a=Interval(low=float(a.min()), high=float(a.max())),
        worst=[name for name, ok in zip(names, usable, strict=True) if ok][worst],
        shift=float(a[worst] - plain),
    )
