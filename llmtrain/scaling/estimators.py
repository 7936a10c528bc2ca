"""Every estimator on one table of runs, each with its interval or its refusal."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from llmtrain.scaling.akima import akima_vertex, bootstrap_akima
from llmtrain.scaling.bias import GridBias, correct_isoflop
from llmtrain.scaling.bootstrap import (
    LawDraws,
    PowerDraws,
    bootstrap_envelope,
    bootstrap_isoflop,
    bootstrap_parametric,
    draw_weights,
    interval,
)
from llmtrain.scaling.config import AnalyzeConfig
from llmtrain.scaling.cost import CostModel
from llmtrain.scaling.diagnose import refuse_exponents, refuse_parametric, refuse_width
from llmtrain.scaling.envelope import EnvelopeFit, fit_envelope
from llmtrain.scaling.estimate import Estimate, Fit
from llmtrain.scaling.interaction import fit_interaction
from llmtrain.scaling.isoflop import IsoflopFit, fit_isoflop
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
    found = [_attempt("approach1_hull", lambda: _hull(config, rows), cost, len(rows))]
    if training is not None:
        found += _from_curves(config, training, finals, cost)
    surfaces = [
        _attempt(name, _bound(config, finals, name, options), cost, len(finals))
        for name, options in surface_options(config).items()
    ]
    if config.interaction:
        base = surfaces[-1].fit
        method = partial(_interaction, config, finals, base, cost)
        surfaces.append(_attempt("interaction", method, cost, len(finals)))
    law = next(
        (e.fit.law for e in surfaces if isinstance(e.fit, ParametricFit) and not e.reason), None
    )
    outliers = find_outliers(finals.params, finals.tokens, finals.loss, finals.budget, law)
    n_curve_runs = int(np.isfinite(finals.budget).sum())
    plain = _attempt("approach2", lambda: _isoflop(config, finals), cost, n_curve_runs)
    found.append(plain)
    if outliers.any():
        clean = finals.take(~outliers)
        n_clean = int(np.isfinite(clean.budget).sum())
        found.append(_attempt("approach2_robust", lambda: _isoflop(config, clean), cost, n_clean))
    bias = None
    if law is not None and isinstance(plain.fit, IsoflopFit):
        try:
            columns = (finals.params, finals.tokens, finals.budget)
            bias = correct_isoflop(plain.fit, law, cost, *columns)
            found.append(_corrected(plain, bias))
        except FitRefusedError:
            bias = None
    found.append(_attempt("approach2_akima", lambda: _akima(config, finals), cost, n_curve_runs))
    return Estimates(methods=(*found, *surfaces), outliers=outliers, bias=bias)


def _hull(config: AnalyzeConfig, rows: Runs) -> tuple[Fit, PowerDraws, str]:
    columns = (rows.params, rows.tokens, _flops_of_curve(rows), rows.loss)
    fit = fit_envelope(*columns)
    own = draw_weights(_units(config, rows), min(config.bootstrap, 1000), config.seed)
    return fit, bootstrap_envelope(*columns, own), refuse_exponents(fit.a, fit.b)


def _from_curves(
    config: AnalyzeConfig, training: TrainingCurves, finals: Runs, cost: CostModel
) -> list[Estimate]:
    """Return Approach 1 by the hull of all smoothed points, and by the lowest run per FLOPs."""
    training = training.of(finals)
    names = np.unique(training.run_id)
    with_curve = finals.take(np.isin(finals.run_id, names))
    by_name = np.argsort(with_curve.run_id)

    def attempt(
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
        _attempt(name, lambda pair=pair: attempt(*pair), cost, len(names))  # type: ignore[misc]
        for name, pair in methods.items()
    ]


def _isoflop(config: AnalyzeConfig, runs: Runs) -> tuple[Fit, PowerDraws, str]:
    columns = (runs.params, runs.tokens, runs.loss, runs.budget)
    fit = fit_isoflop(*columns)
    draws = bootstrap_isoflop(
        fit, *columns, unit=config.unit, n_draws=config.bootstrap, seed=config.seed
    )
    return fit, draws, ""


def _akima(config: AnalyzeConfig, runs: Runs) -> tuple[Fit, PowerDraws, str]:
    columns = (runs.params, runs.tokens, runs.loss, runs.budget)
    fit = fit_isoflop(*columns, read=akima_vertex, name="approach2_akima")
    return fit, bootstrap_akima(fit, *columns, n_draws=config.bootstrap, seed=config.seed), ""


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
    weights = draw_weights(_units(config, runs), config.bootstrap, config.seed)
    draws = bootstrap_parametric(fit, *columns, weights)
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


def _flops_of_curve(runs: Runs) -> Array:
    """Return FLOPs, with runs that meet their budget to 0.5 % at the budget itself.

    Else the envelope would begin at whichever run of the first budget is short by a few tokens.
    """
    close = np.abs(runs.flops / runs.budget - 1.0) < 0.005
    return np.where(close, runs.budget, runs.flops)


def _units(config: AnalyzeConfig, runs: Runs) -> Array:
    """Return a label per row: what a draw keeps together."""
    columns = {"run": runs.lineage, "model": runs.params, "budget": runs.budget}
    _, labels = np.unique(columns[config.unit], return_inverse=True)
    return np.asarray(labels, dtype=np.float64)


def _attempt(
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
