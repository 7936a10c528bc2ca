"""Every estimator on one table of runs, each with its interval or its refusal."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from llmtrain.scaling.akima import akima_minima, akima_vertex
from llmtrain.scaling.bias import GridBias, correct_isoflop
from llmtrain.scaling.bootstrap import (
    LawDraws,
    PowerDraws,
    bootstrap_envelope,
    draw_weights,
    interval,
    redraw_surface,
)
from llmtrain.scaling.config import AnalyzeConfig
from llmtrain.scaling.cost import CostModel
from llmtrain.scaling.diagnose import refuse_exponents, refuse_parametric, refuse_width
from llmtrain.scaling.envelope import EnvelopeFit, fit_envelope, refuse_no_choice
from llmtrain.scaling.estimate import Estimate, Fit, attempt
from llmtrain.scaling.forecast import seed_noise
from llmtrain.scaling.interaction import fit_interaction
from llmtrain.scaling.isoflop import (
    MIN_BUDGETS,
    IsoflopFit,
    ReadOut,
    fit_isoflop,
    local_minima,
    local_parabola,
)
from llmtrain.scaling.isoflop_draws import Minima, bootstrap_isoflop, draw_noise
from llmtrain.scaling.law import Array
from llmtrain.scaling.outliers import find_outliers
from llmtrain.scaling.parametric import FitOptions, ParametricFit, fit_parametric
from llmtrain.scaling.runs import Runs
from llmtrain.scaling.training_curves import (
    SmoothCurves,
    TrainingCurves,
    bootstrap_curve_hull,
    bootstrap_lowest,
    fit_curve_hull,
    fit_lowest,
    smooth_curves,
)
from llmtrain.spec.errors import FitRefusedError

READ_OUTS: dict[str, tuple[ReadOut, Minima]] = {
    "approach2_akima": (akima_vertex, akima_minima),
    "approach2_local3": (local_parabola(3), local_minima(3)),
    "approach2_local5": (local_parabola(5), local_minima(5)),
    "approach2_local7": (local_parabola(7), local_minima(7)),
}
SEED_DEGREES = 8
"""Repeated seeds tell the noise of a loss from this many degrees of freedom on."""


def surface_options(config: AnalyzeConfig) -> dict[str, FitOptions]:
    """Return the loss and the constraints of each surface fit."""
    common = FitOptions(
        delta=config.delta,
        starts=config.starts,
        tie_exponents=config.tie,
        fixed_floor=config.floor,
    )
    return {
        "approach3": common,
        "projection": replace(common, link="linear", delta=np.inf),
        "log_squares": replace(common, delta=np.inf),
    }


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Estimates:
    """All methods on one table, with what they found out about it on the way."""

    methods: tuple[Estimate, ...]
    outliers: NDArray[np.bool_]
    """Rows that no smooth curve explains; they stay in every other fit."""
    bias: GridBias | None
    """Expected error of Approach 2 on this grid; null without a surface or without Approach 2."""


def estimate_all(
    config: AnalyzeConfig,
    rows: Runs,
    finals: Runs,
    cost: CostModel,
    training: TrainingCurves | None,
) -> Estimates:
    """Run every method; `rows` has all checkpoints, `finals` the last of each run.

    A method that refuses becomes an estimate with the reason. Training curves enter Approach 1
    only: their points have not seen the end of their schedule.
    """
    found = [attempt("approach1_hull", lambda: _hull(config, rows, finals), cost, len(rows))]
    if training is not None:
        found += _from_curves(config, training, finals, cost)
    surfaces = [
        attempt(name, _bound(config, finals, name, options), cost, len(finals))
        for name, options in surface_options(config).items()
    ]
    if config.interaction:
        base = surfaces[-1].fit
        method = partial(_interaction, config, finals, base, cost)
        surfaces.append(attempt("interaction", method, cost, len(finals)))
    law = next(
        (e.fit.law for e in surfaces if isinstance(e.fit, ParametricFit) and not e.reason), None
    )
    outliers = find_outliers(finals.params, finals.tokens, finals.loss, finals.budget, law)
    n_curve_runs = int(np.isfinite(finals.budget).sum())
    plain = attempt("approach2", lambda: _isoflop(config, finals), cost, n_curve_runs)
    found.append(plain)
    if (outliers & np.isfinite(finals.budget)).any():
        clean = finals.take(~outliers)
        n_clean = int(np.isfinite(clean.budget).sum())
        robust = partial(_isoflop, config, clean, "approach2_robust")
        found.append(attempt("approach2_robust", robust, cost, n_clean))
    bias = None
    if law is not None and isinstance(plain.fit, IsoflopFit):
        try:
            columns = (finals.params, finals.tokens, finals.budget)
            bias = correct_isoflop(plain.fit, law, cost, *columns)
            found.append(_corrected(plain, bias))
        except FitRefusedError:
            bias = None
    for name, (read, minima) in READ_OUTS.items():
        method = partial(_read_out, config, finals, name, read, minima)
        found.append(attempt(name, method, cost, n_curve_runs))
    return Estimates(methods=(*found, *surfaces), outliers=outliers, bias=bias)


def _hull(config: AnalyzeConfig, rows: Runs, finals: Runs) -> tuple[Fit, PowerDraws, str]:
    columns = (rows.params, rows.tokens, flops_of_curve(rows), rows.loss)
    fit = fit_envelope(*columns)
    # Only the last rows of the runs were assigned to curves.
    assigned = dict(zip(finals.run_id.tolist(), finals.budget.tolist(), strict=True))
    known = zip(rows.run_id.tolist(), rows.budget.tolist(), strict=True)
    on_curves = replace(rows, budget=np.array([assigned.get(name, own) for name, own in known]))
    own = draw_weights(_units(config, on_curves), min(config.bootstrap, 1000), config.seed)
    reason = refuse_exponents(fit.a, fit.b) or refuse_no_choice(fit.rows, *columns[:3])
    return fit, bootstrap_envelope(*columns, own), reason


def _from_curves(
    config: AnalyzeConfig, training: TrainingCurves, finals: Runs, cost: CostModel
) -> list[Estimate]:
    """Return Approach 1 by the hull of all smoothed points, and by the lowest run per FLOPs."""
    training = training.of(finals)
    names = np.unique(training.run_id)
    with_curve = finals.take(np.isin(finals.run_id, names))
    by_name = np.argsort(with_curve.run_id)

    def method(
        fit: Callable[[SmoothCurves], EnvelopeFit],
        redraw: Callable[[SmoothCurves, Array], PowerDraws],
    ) -> tuple[Fit, PowerDraws, str]:
        found = fit(curves := smooth_curves(training, with_curve))
        units = _units(config, with_curve)[by_name]
        weights = draw_weights(units, min(config.bootstrap, 1000), config.seed)
        return found, redraw(curves, weights), refuse_exponents(found.a, found.b)

    methods = {
        "approach1_curves": (fit_curve_hull, bootstrap_curve_hull),
        "approach1_smoothed": (fit_lowest, bootstrap_lowest),
    }
    return [
        attempt(name, lambda pair=pair: method(*pair), cost, len(names))  # type: ignore[misc]
        for name, pair in methods.items()
    ]


def _isoflop(
    config: AnalyzeConfig, runs: Runs, name: str = "approach2"
) -> tuple[Fit, PowerDraws, str]:
    columns = (runs.params, runs.tokens, runs.loss, runs.budget)
    fit = fit_isoflop(*columns, name=name)
    draws = bootstrap_isoflop(
        fit,
        *columns,
        runs.lineage,
        unit=config.unit,
        n_draws=config.bootstrap,
        seed=config.seed,
    )
    return fit, draws, ""


def _read_out(
    config: AnalyzeConfig, runs: Runs, name: str, read: ReadOut, minima: Minima
) -> tuple[Fit, PowerDraws, str]:
    """Return Approach 2 with a read-out that leaves no residuals: its interval is from noise."""
    columns = (runs.params, runs.tokens, runs.loss, runs.budget)
    fit = fit_isoflop(*columns, read=read, name=name)
    sd, repeated = config.noise, seed_noise(runs)
    if sd is None and repeated is not None and repeated.degrees >= SEED_DEGREES:
        sd = repeated.sd
    fit, draws = draw_noise(fit, columns, minima, sd=sd, n_draws=config.bootstrap, seed=config.seed)
    return fit, draws, refuse_exponents(fit.a, fit.b)


def _corrected(plain: Estimate, bias: GridBias) -> Estimate:
    """Return Approach 2 with the grid's bias subtracted, its draws moved by as much."""
    old, new = plain.fit, bias.corrected
    assert isinstance(old, IsoflopFit)
    assert isinstance(plain.draws, PowerDraws)
    ratio = (
        new.params_law.coefficient / old.params_law.coefficient,
        new.tokens_law.coefficient / old.tokens_law.coefficient,
    )
    draws = PowerDraws(
        params_coefficient=plain.draws.params_coefficient * ratio[0],
        a=plain.draws.a + (new.a - old.a),
        tokens_coefficient=plain.draws.tokens_coefficient * ratio[1],
        b=plain.draws.b + (new.b - old.b),
        failed=plain.draws.failed,
    )
    reason = refuse_exponents(new.a, new.b)
    return replace(
        plain,
        name="approach2_corrected",
        status="refused" if reason else "accepted",
        reason=reason,
        fit=new,
        draws=draws,
        a=new.a,
        b=new.b,
        a_interval=interval(draws.a),
        b_interval=interval(draws.b),
    )


def _surface(
    config: AnalyzeConfig, runs: Runs, name: str, options: FitOptions
) -> tuple[Fit, LawDraws, str]:
    columns = (runs.params, runs.tokens, runs.loss)
    fit = fit_parametric(*columns, options, name=name)
    draws = redraw_surface(
        fit,
        *columns,
        _units(config, runs),
        unit=config.unit,
        n_draws=config.bootstrap,
        seed=config.seed,
    )
    return fit, draws, refuse_parametric(fit, interval(draws.a, 0.8))


def _interaction(
    config: AnalyzeConfig, runs: Runs, base: Fit | None, cost: CostModel
) -> tuple[Fit, PowerDraws, str]:
    if not isinstance(base, ParametricFit):
        raise FitRefusedError("the surface without the term is refused, so nothing to compare with")
    fit, draws = fit_interaction(
        base,
        (runs.params, runs.tokens, runs.loss, runs.flops),
        cost,
        n_draws=config.bootstrap,
        seed=config.seed,
    )
    return fit, draws, refuse_exponents(fit.a, fit.b) or refuse_width(interval(draws.a, 0.8))


def _bound(
    config: AnalyzeConfig, runs: Runs, name: str, options: FitOptions
) -> Callable[[], tuple[Fit, LawDraws, str]]:
    return lambda: _surface(config, runs, name, options)


def flops_of_curve(runs: Runs) -> Array:
    """Return FLOPs, with runs that meet their budget to 0.5 % at the budget itself.

    Else the envelope would begin at whichever run of the first budget is short by a few tokens.
    """
    close = np.abs(runs.flops / runs.budget - 1.0) < 0.005
    return np.where(close, runs.budget, runs.flops)


def _units(config: AnalyzeConfig, runs: Runs) -> Array:
    """Return a label per row: what a draw keeps together.

    A row of no budget keeps to its lineage. Raises FitRefusedError for fewer than three budgets.
    """
    labels = np.unique(runs.lineage, return_inverse=True)[1]
    if config.unit == "model":
        labels = np.unique(runs.params, return_inverse=True)[1]
    if config.unit == "budget":
        # Lineages count down from 0, and budgets are above it.
        units = np.where(np.isfinite(runs.budget), runs.budget, -labels)
        names, labels = np.unique(units, return_inverse=True)
        if len(names) < MIN_BUDGETS:
            raise FitRefusedError(
                f"unit=budget has {len(names)} budgets to draw, needs {MIN_BUDGETS}; set unit=run"
            )
    return np.asarray(labels, dtype=np.float64)
