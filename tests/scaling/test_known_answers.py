"""Known answers that no other file holds: tails of public tables and synthetic surfaces."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmtrain.scaling.binning import assign_budgets
from llmtrain.scaling.isoflop import fit_isoflop, read_curves
from llmtrain.scaling.law import Array, LossLaw, fit_power_law
from llmtrain.scaling.load import load_runs
from llmtrain.scaling.parametric import FitOptions, fit_parametric, fit_projection
from llmtrain.scaling.published import published_law
from llmtrain.scaling.runs import Runs

Table = Callable[[str], Path]
CHIN = LossLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
NINE = (6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21)


@pytest.fixture
def epoch(public_table: Table) -> Runs:
    return load_runs(public_table("epoch_chinchilla_240.csv"))


@pytest.mark.parametrize(
    ("tolerance", "n_rows", "a"),
    [(0.05, 66, 0.438), (0.1, 116, 0.519), (0.15, None, 0.516), (0.2, None, 0.517),
     (0.25, None, 0.511)],
)  # fmt: skip
def test_epochs_rows_snapped_to_nine_budgets_without_the_edge_guard(
    epoch: Runs, tolerance: float, n_rows: int | None, a: float
) -> None:
    runs, _ = assign_budgets(epoch, NINE, tolerance)
    columns = (runs.params, runs.tokens, runs.loss, runs.budget)
    assert n_rows is None or int(np.isfinite(runs.budget).sum()) == n_rows
    assert fit_isoflop(*columns, drop_edges=False).a == pytest.approx(a, abs=3e-3)


def test_the_vertex_that_the_edge_guard_drops(epoch: Runs) -> None:
    runs, _ = assign_budgets(epoch, NINE, 0.1)
    columns = (runs.params, runs.tokens, runs.loss, runs.budget)
    (curve,) = (c for c in read_curves(*columns) if c.budget == 1e20)
    assert curve.params.x == pytest.approx(5.0e8, rel=0.01)
    assert runs.params[runs.budget == 1e20].min() == pytest.approx(6.3e8, rel=0.01)
    assert curve.reason.startswith("minimum at N")


@pytest.mark.parametrize(
    ("method", "a", "errors"),
    [("approach3", 0.5477, (-0.02, 1.05, 2.78)), ("projection", 0.5665, (0.56, 1.29, 4.00))],
)
def test_fits_below_1e21_forecast_the_23_rows_above(
    epoch: Runs, method: str, a: float, errors: tuple[float, float, float]
) -> None:
    small = epoch.flops < 1e21
    assert (int(small.sum()), int((~small).sum())) == (217, 23)
    fitter = fit_parametric if method == "approach3" else fit_projection
    law = fitter(epoch.params[small], epoch.tokens[small], epoch.loss[small]).law
    large = epoch.take(~small)
    off = 100 * (law.loss(large.params, large.tokens) / large.loss - 1)
    assert law.a == pytest.approx(a, abs=2e-4)
    found = (off.mean(), np.abs(off).mean(), np.abs(off).max())
    assert found == pytest.approx(errors, abs=0.05)


def test_four_losses_on_217_rows_span_the_known_exponents(epoch: Runs) -> None:
    small = epoch.take(epoch.flops < 1e21)
    columns = (small.params, small.tokens, small.loss)
    options = (FitOptions(), FitOptions(link="linear"), FitOptions(delta=np.inf))
    exponents = [fit_parametric(*columns, own).law.a for own in options]
    assert exponents == pytest.approx([0.5477, 0.5561, 0.5571], abs=2e-4)


# Rows of Porian's table that tests/scaling/test_isoflop.py leaves out: a, edges.
FULL_PARABOLAS = {
    "rw_tuned_warm-long_decay-const_count-kaplan_train": (0.715, 0),
    "rw_base_warm-short_decay-kaplan_count-attention_train": (0.703, 2),
    "rw_base_warm-short_decay-chinchilla_count-attention_train": (0.736, 4),
    "rw_tuned_warm-short_decay-const_count-attention_train": (0.522, 0),
    "owt2_base_warm-long_decay-kaplan_count-kaplan_train": (1.199, 3),
    "owt2_base_warm-short_decay-kaplan_count-standard_val": (0.611, 0),
    "owt2_base_warm-short_decay-chinchilla_count-standard_val": (0.555, 0),
    "owt2_tuned_warm-short_decay-const_count-standard_val": (0.511, 0),
}
LADDER = {
    "rw_base_warm-long_decay-kaplan_count-kaplan_train": 0.841,
    "rw_base_warm-long_decay-kaplan_count-standard_val": 0.692,
    "rw_base_warm-short_decay-kaplan_count-standard_val": 0.598,
    "rw_base_warm-short_decay-chinchilla_count-standard_val": 0.548,
    "rw_tuned_warm-short_decay-const_count-standard_val": 0.584,
}
"""Approach 3 on the rows within 6 % of their budget's best."""


@pytest.fixture
def porian(public_table: Table) -> Callable[[str], Runs]:
    table = load_runs(public_table("porian2024_isoflop.csv"))
    return lambda group: assign_budgets(table.take(table.group == group), (), 0.1)[0]


@pytest.mark.parametrize("group", FULL_PARABOLAS)
def test_full_parabolas_on_the_other_rows_of_porian(
    porian: Callable[[str], Runs], group: str
) -> None:
    runs = porian(group)
    columns = (runs.params, runs.tokens, runs.loss, runs.budget)
    a, n_edges = FULL_PARABOLAS[group]
    assert fit_isoflop(*columns, drop_edges=False).a == pytest.approx(a, abs=1e-3)
    assert sum(not curve.used for curve in read_curves(*columns)) == n_edges


def test_porians_first_row_without_its_edges(porian: Callable[[str], Runs]) -> None:
    runs = porian(next(iter(LADDER)))
    used = [c for c in read_curves(runs.params, runs.tokens, runs.loss, runs.budget) if c.used]
    sizes = np.array([curve.params.x for curve in used])
    budgets = np.array([curve.budget for curve in used])
    assert fit_power_law(budgets, sizes).exponent == pytest.approx(0.865, abs=1e-3)


@pytest.mark.parametrize("group", LADDER)
def test_approach_3_near_the_minima_of_porians_ladder(
    porian: Callable[[str], Runs], group: str
) -> None:
    runs = porian(group)
    best = np.array([runs.loss[runs.budget == budget].min() for budget in runs.budget])
    near = runs.take(runs.loss <= 1.06 * best)
    fit = fit_parametric(near.params, near.tokens, near.loss)
    assert fit.law.a == pytest.approx(LADDER[group], abs=0.012)


def test_the_surface_of_a_public_assignment_comes_back(
    isoflop_grid: Callable[..., tuple[Array, Array]],
) -> None:
    law = LossLaw(E=2.69, A=1606.4, B=3210.7, alpha=0.34, beta=0.36)
    assert law.a == pytest.approx(0.514286, abs=1e-6)
    N, D = isoflop_grid(law, np.geomspace(1e17, 1e21, 5), 8.0, 15)
    for fitter in (fit_parametric, fit_projection):
        found = fitter(N, D, law.loss(N, D)).law
        assert list(found.as_dict().values()) == pytest.approx(
            list(law.as_dict().values()), rel=1e-4
        )


def test_wide_parabolas_are_off_in_the_intercept_and_a_drift_in_the_exponent(
    isoflop_grid: Callable[..., tuple[Array, Array]],
) -> None:
    budgets = np.geomspace(1e17, 1e21, 5)
    N, D = isoflop_grid(CHIN, budgets, 16.0, 15)
    fit = fit_isoflop(N, D, CHIN.loss(N, D), np.repeat(budgets, 15))
    assert np.log10(fit.tokens_law.coefficient) == pytest.approx(-0.578092, abs=1e-5)
    assert np.log10(CHIN.tokens_law.coefficient) == pytest.approx(-0.555357, abs=1e-5)
    assert fit.b == pytest.approx(0.548387, abs=1e-6)
    even = LossLaw(E=1.69, A=400.0, B=400.0, alpha=0.31, beta=0.31)
    assert float(even.d_opt(1e24)) == pytest.approx(4.0825e11, rel=1e-4)
    N, D = isoflop_grid(even, budgets, 4.0, 15)
    drift = np.repeat(np.geomspace(1.0, 3.0, 5), 15)
    N, D = N / drift, D * drift
    assert fit_isoflop(N, D, even.loss(N, D), np.repeat(budgets, 15)).b == pytest.approx(
        0.503553, abs=1e-6
    )


def test_one_diverged_run_misleads_the_projection(
    isoflop_grid: Callable[..., tuple[Array, Array]],
) -> None:
    N, D = isoflop_grid(CHIN, np.geomspace(1e17, 1e21, 5), 8.0, 15)
    loss = CHIN.loss(N, D)
    last = np.flatnonzero(np.isclose(6 * N * D, 1e21))
    loss[last[N[last].argmax()]] *= 1.2
    assert fit_projection(N, D, loss).law.a == pytest.approx(0.430, abs=1e-3)


@pytest.mark.parametrize("ratios", [(10, 20, 40), (5, 20, 80, 320)])
def test_three_or_four_ratios_find_the_exponent_that_one_cannot(ratios: tuple[int, ...]) -> None:
    N = np.repeat(np.geomspace(1e7, 1e9, 8), len(ratios))
    D = N * np.tile(ratios, 8)
    loss = CHIN.loss(N, D) * np.exp(0.005 * np.random.default_rng(0).standard_normal(len(N)))
    assert fit_parametric(N, D, loss).law.a == pytest.approx(0.4516, abs=0.04)


def test_muennighoffs_closed_form_at_chinchillas_budget() -> None:
    law = published_law("muennighoff_c4").loss_law
    assert law is not None
    optimum = (float(law.n_opt(5.76e23)), float(law.d_opt(5.76e23)))
    assert optimum == pytest.approx((69.96e9, 1.372e12), rel=1e-3)
    assert pytest.approx(0.225802, rel=1e-5) == law.G
