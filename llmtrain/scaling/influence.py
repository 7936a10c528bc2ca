"""Which runs carry the exponent: everything left out in turn, in one batch."""

from dataclasses import dataclass

import numpy as np

from llmtrain.scaling.bootstrap import Interval, refit_weights
from llmtrain.scaling.cost import CostModel
from llmtrain.scaling.envelope import EnvelopeFit, fit_envelope
from llmtrain.scaling.isoflop import IsoflopFit, fit_isoflop
from llmtrain.scaling.law import Array
from llmtrain.scaling.parametric import ParametricFit
from llmtrain.scaling.runs import Labels, Runs
from llmtrain.spec.errors import FitRefusedError

HIGHEST = 5
MOST_REFITS = 200
"""Units beyond which leaving each out by a refit of its own would take too long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """The exponent a with one kind of unit left out in turn."""

    method: str
    """Name of the fit whose exponent this is."""
    kind: str
    """run, model, budget, hull point, or the five highest losses."""
    n_units: int
    range_of_a: Interval
    worst: str
    """Unit whose absence moves a most."""
    shift: float
    """By how much, signed."""
    on_lines: bool = False
    """a is the slope of a line through minima or hull points, not of a surface."""


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


def leave_out_isoflop(fit: IsoflopFit, runs: Runs) -> tuple[LeftOut, ...]:
    """Return how Approach 2's a moves when each model or budget leaves."""
    found = []
    kinds = (("model", runs.params, np.unique(runs.params)), ("budget", runs.budget, runs.budgets))
    for kind, labels, units in kinds:
        refits: dict[str, float] = {}
        for unit in units if 2 < len(units) <= MOST_REFITS else ():
            rest = runs.take(labels != unit)
            try:
                own = fit_isoflop(rest.params, rest.tokens, rest.loss, rest.budget)
            except FitRefusedError:
                continue
            refits[f"{unit:.4g}"] = own.a
        found.append(_of_refits(fit.name, kind, fit.a, refits))
    return tuple(item for item in found if item is not None)


def leave_out_hull(
    fit: EnvelopeFit, names: Labels, columns: tuple[Array, Array, Array, Array]
) -> LeftOut | None:
    """Return how Approach 1's a moves when each run of the hull leaves; `columns` N, D, C, loss."""
    refits: dict[str, float] = {}
    for row in fit.rows if len(fit.rows) <= MOST_REFITS else ():
        keep = np.arange(len(names)) != row
        try:
            own = fit_envelope(*(column[keep] for column in columns))
        except FitRefusedError:
            continue
        label = str(names[row])
        # Several checkpoints of one run may lie on the hull.
        refits[label if label not in refits else f"{label} (row {row})"] = own.a
    return _of_refits(fit.name, "hull point", fit.a, refits)


def _of_refits(method: str, kind: str, plain: float, refits: dict[str, float]) -> LeftOut | None:
    if not refits:
        return None
    worst = max(refits, key=lambda name: abs(refits[name] - plain))
    return LeftOut(
        method=method,
        kind=kind,
        n_units=len(refits),
        range_of_a=Interval(low=min(refits.values()), high=max(refits.values())),
        worst=worst,
        shift=refits[worst] - plain,
        on_lines=True,
    )


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
        method=fit.name,
        kind=kind,
        n_units=len(names),
        range_of_a=Interval(low=float(a.min()), high=float(a.max())),
        worst=[name for name, ok in zip(names, usable, strict=True) if ok][worst],
        shift=float(a[worst] - plain),
    )
