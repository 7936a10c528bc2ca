"""Options of the surface fits: tied exponents, a given floor, a term in N and D together."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmtrain.scaling.analysis import analyze
from llmtrain.scaling.config import AnalyzeConfig
from llmtrain.scaling.cost import SIX_N_D
from llmtrain.scaling.estimate import Estimate
from llmtrain.scaling.estimators import _isoflop, _units
from llmtrain.scaling.interaction import fit_interaction
from llmtrain.scaling.law import Array, LossLaw
from llmtrain.scaling.load import load_runs
from llmtrain.scaling.parametric import FitOptions, ParametricFit, fit_parametric
from llmtrain.scaling.results import GroupAnalysis
from llmtrain.spec.errors import ConfigError, FitRefusedError
from llmtrain.spec.record import RunRecord

LAW = LossLaw(E=1.7, A=400.0, B=900.0, alpha=0.34, beta=0.33)
SQUARES = FitOptions(delta=np.inf)


def crossed(n_sizes: int = 8, n_ratios: int = 6) -> tuple[Array, Array]:
    """Every size at every ratio of tokens."""
    N = np.repeat(np.geomspace(1e7, 3e9, n_sizes), n_ratios)
    return N, N * np.tile(np.geomspace(2.0, 300.0, n_ratios), n_sizes)


def with_term(N: Array, D: Array, kappa: float) -> Array:
    u, v = LAW.A * N**-LAW.alpha, LAW.B * D**-LAW.beta
    return np.asarray(LAW.E + u + v + kappa * u * v)


def test_a_planted_interaction_comes_back_and_is_asked_for() -> None:
    N, D = crossed()
    loss = with_term(N, D, 0.8)
    base = fit_parametric(N, D, loss, SQUARES)
    fit, draws = fit_interaction(base, (N, D, loss, 6 * N * D), SIX_N_D, n_draws=50, seed=0)
    found = (fit.E, fit.A, fit.B, fit.alpha, fit.beta, fit.K / fit.A / fit.B)
    assert found == pytest.approx((1.7, 400.0, 900.0, 0.34, 0.33, 0.8), rel=1e-4)
    assert fit.asked_for
    assert fit.agreeing >= 2
    assert draws.failed == 0


def test_the_optimum_with_a_term_is_the_numerical_minimum() -> None:
    N, D = crossed()
    loss = with_term(N, D, 0.8)
    base = fit_parametric(N, D, loss, SQUARES)
    fit, _ = fit_interaction(base, (N, D, loss, 6 * N * D), SIX_N_D, n_draws=20, seed=0)
    flops = np.geomspace((6 * N * D).min(), (6 * N * D).max(), 9)
    sizes = np.geomspace(1e5, 1e12, 200_001)
    best = [sizes[with_term(sizes, C / 6 / sizes, 0.8).argmin()] for C in flops]
    slope = np.polyfit(np.log(flops), np.log(best), 1)[0]
    assert fit.a == pytest.approx(slope, abs=1e-3)
    assert fit.a + fit.b == pytest.approx(1.0, abs=1e-9)


def test_a_plain_law_asks_for_no_interaction_but_once_in_a_hundred() -> None:
    N, D = crossed()
    rng = np.random.default_rng(3)
    asked, covered, fits = 0, 0, 60
    for draw in range(fits):
        loss = LAW.loss(N, D) * np.exp(0.004 * rng.standard_normal(len(N)))
        base = fit_parametric(N, D, loss, SQUARES)
        fit, _ = fit_interaction(base, (N, D, loss, 6 * N * D), SIX_N_D, n_draws=200, seed=draw)
        asked += fit.asked_for
        assert fit.share_interval is not None
        covered += fit.share_interval.low <= 0.0 <= fit.share_interval.high
    assert asked <= 4
    assert covered >= 0.78 * fits


def test_a_ladder_cannot_tell_an_interaction_and_is_refused() -> None:
    N = np.geomspace(1e7, 1e9, 12)
    loss = LAW.loss(N, 20 * N) * np.exp(0.002 * np.random.default_rng(0).standard_normal(12))
    base = fit_parametric(N, 20 * N, loss, SQUARES)
    with pytest.raises(FitRefusedError, match=r"not identified|not certified|no law"):
        fit_interaction(base, (N, 20 * N, loss, 120 * N * N), SIX_N_D, n_draws=20, seed=0)


def surfaces(group: GroupAnalysis) -> list[tuple[Estimate, ParametricFit]]:
    pairs = [(e, e.fit) for e in group.estimates]
    return [(e, fit) for e, fit in pairs if isinstance(fit, ParametricFit)]


def test_tie_and_floor_reach_every_surface_its_draws_and_the_checklist(
    planted_sweep: Callable[..., Path], analyze_config: Callable[..., AnalyzeConfig]
) -> None:
    runs = load_runs(planted_sweep())
    group = analyze(analyze_config(tie=True), runs).groups[0]
    found = surfaces(group)
    assert len(found) == 3
    for estimate, fit in found:
        assert fit.law.alpha == pytest.approx(fit.law.beta, rel=1e-12)
        assert estimate.a_interval is not None
        assert estimate.a_interval.high - estimate.a_interval.low < 1e-9
    assert group.profile is None
    for _, fit in surfaces(analyze(analyze_config(floor=0.9), runs).groups[0]):
        assert pytest.approx(0.9, rel=1e-12) == fit.law.E
        assert fit.law.alpha == pytest.approx(0.38, abs=0.03)


def test_interaction_is_a_row_with_its_certificate_and_says_what_the_runs_ask_for(
    planted_sweep: Callable[..., Path], analyze_config: Callable[..., AnalyzeConfig]
) -> None:
    group = analyze(analyze_config(interaction=True), load_runs(planted_sweep())).groups[0]
    row = group.estimate("interaction")
    assert row.status == "accepted" or row.reason
    if group.interaction is not None:
        message = next(f.message for f in group.findings if f.code == "interaction")
        assert "do not ask for" in message
    with pytest.raises(ConfigError, match="leave tie and floor out"):
        analyze_config(interaction=True, tie=True)


def test_budgets_that_a_table_does_not_give_are_units_as_assigned(
    tmp_path: Path, analyze_config: Callable[..., AnalyzeConfig]
) -> None:
    """The hull's draws resample the curves found in the FLOPs, as they do a budget column's."""
    rng = np.random.default_rng(0)
    lines = {False: ["params,tokens,flops,loss"], True: ["params,tokens,flops,loss,budget"]}
    for C in np.geomspace(1e17, 1e20, 6):
        for n in LAW.n_opt(C) * np.geomspace(0.2, 5.0, 7):
            loss = LAW.loss(n, C / 6 / n) * np.exp(0.02 * rng.standard_normal())
            row = f"{n},{C / 6 / n},{C},{loss}"
            lines[False].append(row)
            lines[True].append(f"{row},{C}")
    bounds = []
    for given, rows in lines.items():
        path = tmp_path / f"{given}.csv"
        path.write_text("\n".join(rows), encoding="utf-8")
        (group,) = analyze(analyze_config(unit="budget", bootstrap=60), load_runs(path)).groups
        bounds.append(group.estimate("approach1_hull").a_interval)
    assert bounds[0] == bounds[1]
    assert bounds[0] is not None
    assert bounds[0].high - bounds[0].low > 0.001


def test_rows_of_no_budget_are_units_of_their_own(
    planted_sweep: Callable[..., Path], analyze_config: Callable[..., AnalyzeConfig]
) -> None:
    runs = load_runs(planted_sweep())
    alone = dataclasses.replace(runs, budget=np.where(runs.budget < 2e11, np.nan, runs.budget))
    units = _units(analyze_config(unit="budget"), alone)
    assert len(np.unique(units)) == 9 + 3


def test_two_budgets_are_too_few_to_draw(
    planted_sweep: Callable[..., Path], analyze_config: Callable[..., AnalyzeConfig]
) -> None:
    runs = load_runs(planted_sweep((1e11, 1e12)))
    with pytest.raises(FitRefusedError, match="unit=budget has 2 budgets"):
        analyze(analyze_config(unit="budget", bootstrap=20), runs)


def test_branches_of_a_trunk_are_resampled_together(
    planted_sweep: Callable[..., Path], analyze_config: Callable[..., AnalyzeConfig]
) -> None:
    """A trunk per shape: to draw runs is to draw shapes."""

    def branch(record: RunRecord) -> RunRecord:
        return dataclasses.replace(record, trunk=f"{record.params['no_input_embedding']:09d}")

    runs = load_runs(planted_sweep(change=branch))
    drawn = [
        _isoflop(analyze_config(unit=unit, bootstrap=40), runs)[1].a for unit in ("run", "model")
    ]
    assert np.array_equal(*drawn, equal_nan=True)
