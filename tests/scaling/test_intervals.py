"""Nine in ten of the 90 % intervals hold the truth, and published intervals come back."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from llmtrain.scaling.akima import akima_minima, akima_vertex
from llmtrain.scaling.binning import assign_budgets
from llmtrain.scaling.bootstrap import (
    Unit,
    bootstrap_envelope,
    draw_weights,
    interval,
    noise_varies,
    redraw_surface,
)
from llmtrain.scaling.envelope import fit_envelope
from llmtrain.scaling.estimators import READ_OUTS
from llmtrain.scaling.isoflop import fit_isoflop, local_minima, local_parabola
from llmtrain.scaling.isoflop_draws import bootstrap_isoflop, draw_noise, local_noise
from llmtrain.scaling.law import Array, LossLaw
from llmtrain.scaling.load import load_runs
from llmtrain.scaling.newton import minimise
from llmtrain.scaling.parametric import (
    FitOptions,
    ParametricFit,
    fit_parametric,
    law_from_theta,
    make_objective,
)

CHIN = LossLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
DRAWS = 39
UNITS: tuple[Unit, ...] = get_args(Unit)
Grid = Callable[..., tuple[Array, Array]]
SURFACES = {
    "approach3": FitOptions(),
    "projection": FitOptions(link="linear", delta=np.inf),
    "log_squares": FitOptions(delta=np.inf),
}
FAMILIES = pytest.mark.parametrize(
    ("budgets", "points", "seeds", "growth"), [(5, 9, 1, 1.0), (4, 6, 2, 1.0), (5, 9, 1, 4.0)]
)
"""Grids, and how many times the noise of the largest model the smallest has."""
PORIAN = {
    "rw_base_warm-long_decay-kaplan_count-kaplan_train": (0.835, 0.824, 0.846),
    "rw_base_warm-long_decay-kaplan_count-standard_val": (0.706, 0.691, 0.717),
    "rw_base_warm-short_decay-kaplan_count-standard_val": (0.602, 0.591, 0.617),
    "rw_base_warm-short_decay-chinchilla_count-standard_val": (0.571, 0.560, 0.589),
    "rw_tuned_warm-short_decay-const_count-standard_val": (0.497, 0.491, 0.505),
    "rw_tuned_warm-long_decay-const_count-kaplan_train": (0.711, 0.703, 0.721),
    "rw_base_warm-long_decay-kaplan_count-attention_train": (0.717, 0.703, 0.727),
    "rw_base_warm-short_decay-kaplan_count-attention_train": (0.622, 0.607, 0.632),
    "rw_base_warm-short_decay-chinchilla_count-attention_train": (0.577, 0.562, 0.592),
    "rw_tuned_warm-short_decay-const_count-attention_train": (0.505, 0.496, 0.512),
    "owt2_base_warm-long_decay-kaplan_count-kaplan_train": (0.864, 0.819, 0.897),
    "owt2_base_warm-long_decay-kaplan_count-standard_val": (0.699, 0.664, 0.724),
    "owt2_base_warm-short_decay-kaplan_count-standard_val": (0.603, 0.570, 0.629),
    "owt2_base_warm-short_decay-chinchilla_count-standard_val": (0.574, 0.542, 0.606),
    "owt2_tuned_warm-short_decay-const_count-standard_val": (0.518, 0.493, 0.541),
}


def families(N: Array, D: Array, sd: float, growth: float = 1.0) -> Array:
    """400 noisy losses of every run; the smallest model's noise is `growth` times the largest's."""
    share = (np.log(N.max()) - np.log(N)) / np.ptp(np.log(N))
    scale = growth**share / np.sqrt(np.mean(growth ** (2 * share)))
    rng = np.random.default_rng(9)
    return np.asarray(CHIN.loss(N, D) * np.exp(sd * scale * rng.standard_normal((400, len(N)))))


def covered(draws_of_a: Array, truth: float = CHIN.a) -> bool:
    """Whether the second of 39 draws from either end, a 90 % interval exactly, hold the truth."""
    bounds = interval(draws_of_a, 1 - 2 / (DRAWS - 1))
    assert bounds is not None
    return bounds.low <= truth <= bounds.high


def fits_of(N: Array, D: Array, losses: Array, options: FitOptions) -> Iterator[ParametricFit]:
    """Fits of all families by one batch of Newton steps from the planted law."""
    x, y = float(np.log(N).mean()), float(np.log(D).mean())
    logs = np.log([CHIN.A, CHIN.B, CHIN.E]) - [CHIN.alpha * x, CHIN.beta * y, 0.0]
    starts = np.tile([*logs, CHIN.alpha, CHIN.beta], (len(losses), 1))
    objective = make_objective(N, D, losses, options, (x, y))
    minima = minimise(objective, starts, np.ones((1, len(N))))
    whole = fit_parametric(N, D, losses[0], options)
    assert whole.theta == pytest.approx(minima.theta[0], rel=1e-5)
    for theta in minima.theta:
        yield replace(whole, theta=theta, law=law_from_theta(theta, (x, y)))


@pytest.mark.slow
@FAMILIES
@pytest.mark.parametrize("name", SURFACES)
def test_nine_in_ten_of_400_surface_intervals_cover_the_planted_exponent(
    isoflop_grid: Grid, name: str, budgets: int, points: int, seeds: int, growth: float
) -> None:
    N, D = isoflop_grid(CHIN, np.geomspace(1e17, 1e20, budgets), 6.0, points, seeds)
    losses = families(N, D, 0.005, growth)
    hits = 0
    for draw, fit in enumerate(fits_of(N, D, losses, SURFACES[name])):
        found = redraw_surface(
            fit, N, D, losses[draw], np.arange(len(N)), unit="auto", n_draws=DRAWS, seed=draw
        )
        hits += covered(found.a)
    assert 0.85 <= hits / 400 <= 0.95


@pytest.mark.parametrize(("uneven", "least", "most"), [(0.0, 0, 4), (1.5, 22, 30)])
def test_uneven_noise_is_found_and_even_noise_is_not(
    isoflop_grid: Grid, uneven: float, least: int, most: int
) -> None:
    N, D = isoflop_grid(CHIN, np.geomspace(1e17, 1e20, 5), 6.0, 9)
    rng = np.random.default_rng(2)
    scale = np.exp(-uneven * (np.log(N) - np.log(N).mean()) / np.log(N).std())
    found = 0
    for _ in range(30):
        loss = CHIN.loss(N, D) * np.exp(0.003 * scale * rng.standard_normal(len(N)))
        fit = fit_parametric(N, D, loss, SURFACES["log_squares"])
        found += noise_varies(fit, N, D, loss)
    assert least <= found <= most


@pytest.mark.slow
@FAMILIES
def test_nine_in_ten_of_400_intervals_of_the_parabolas_cover(
    isoflop_grid: Grid, budgets: int, points: int, seeds: int, growth: float
) -> None:
    C = np.geomspace(1e17, 1e20, budgets)
    N, D = isoflop_grid(CHIN, C, 6.0, points, seeds)
    hits = 0
    for draw, loss in enumerate(families(N, D, 0.004, growth)):
        columns = (N, D, loss, np.repeat(C, points * seeds))
        fit = fit_isoflop(*columns)
        found = bootstrap_isoflop(
            fit, *columns, np.arange(len(N)), unit="auto", n_draws=DRAWS, seed=draw
        )
        hits += covered(found.a)
    assert 0.85 <= hits / 400 <= 0.95


@pytest.mark.slow
@FAMILIES
@pytest.mark.parametrize("name", READ_OUTS)
def test_nine_in_ten_of_400_intervals_of_akima_and_local_windows_cover(
    isoflop_grid: Grid, name: str, budgets: int, points: int, seeds: int, growth: float
) -> None:
    """What they cover is the exponent that the same cells give without noise."""
    C = np.geomspace(1e17, 1e20, budgets)
    N, D = isoflop_grid(CHIN, C, 6.0, points, seeds)
    budget, (read, minima) = np.repeat(C, points * seeds), READ_OUTS[name]
    truth = fit_isoflop(N, D, CHIN.loss(N, D), budget, read=read).a
    hits = 0
    for draw, loss in enumerate(families(N, D, 0.002, growth)):
        columns = (N, D, loss, budget)
        fit = fit_isoflop(*columns, read=read)
        _, found = draw_noise(fit, columns, minima, sd=None, n_draws=DRAWS, seed=draw)
        hits += covered(found.a, truth)
    # Uneven noise is pooled, so the arms' noise widens the intervals: 96 % for two of the four.
    assert 0.85 <= hits / 400 <= (0.95 if growth == 1 else 0.97)


@pytest.mark.slow
@pytest.mark.parametrize(("budgets", "points", "seeds"), [(5, 9, 1), (4, 6, 2)])
def test_the_hulls_intervals_cover_at_least_nine_in_ten(
    budgets: int, points: int, seeds: int
) -> None:
    """What they cover is the hull of the same cells without noise; each family has its own cells.

    The hull moves from run to run, so its exponent takes a few values and its interval is too wide.
    """
    rng = np.random.default_rng(3)
    C = np.repeat(np.geomspace(1e17, 1e20, budgets), points * seeds)
    step = np.geomspace(1 / 6, 6, points)
    hits = 0
    for draw in range(400):
        shift = (step[1] / step[0]) ** rng.uniform(-0.5, 0.5, budgets)
        D = CHIN.d_opt(C) * np.outer(shift, np.repeat(step, seeds)).ravel()
        N, exact = C / 6 / D, CHIN.loss(C / 6 / D, D)
        loss = exact * np.exp(0.004 * rng.standard_normal(len(N)))
        weights = draw_weights(np.arange(len(N)), DRAWS, draw)
        found = bootstrap_envelope(N, D, C, loss, weights)
        hits += covered(found.a, fit_envelope(N, D, C, exact).a)
    assert hits / 400 >= 0.85


@pytest.mark.parametrize("repeats", [1, 4])
def test_the_noise_of_a_run_is_found_whatever_the_seeds_per_size(repeats: int) -> None:
    rng = np.random.default_rng(0)
    log_x = np.linspace(15.0, 20.0, 4000)
    means = 0.02 * rng.standard_normal((4000, repeats)).mean(axis=1)
    found = local_noise(log_x, means, np.full(4000, float(repeats)))
    assert float(np.sqrt(np.mean(found**2))) == pytest.approx(0.02, rel=0.05)


def test_resampled_rows_widen_the_parabolas_interval(isoflop_grid: Grid) -> None:
    N, D = isoflop_grid(CHIN, np.geomspace(1e17, 1e20, 5), 6.0, 9)
    columns = (N, D, families(N, D, 0.004)[0], np.repeat(np.geomspace(1e17, 1e20, 5), 9))
    fit = fit_isoflop(*columns)
    sd = {
        unit: float(
            np.std(
                bootstrap_isoflop(
                    fit, *columns, np.arange(len(N)), unit=unit, n_draws=400, seed=0
                ).a
            )
        )
        for unit in UNITS
    }
    assert sd["auto"] == sd["residual"]
    assert sd["run"] > 1.3 * sd["residual"]


@pytest.mark.parametrize("group", PORIAN)
def test_seed_noise_gives_porians_published_intervals(
    public_table: Callable[[str], Path], group: str
) -> None:
    runs = load_runs(public_table("porian2024_isoflop.csv"))
    runs, _ = assign_budgets(runs.take(runs.group == group), (), 0.1)
    columns = (runs.params, runs.tokens, runs.loss, runs.budget)
    fit = fit_isoflop(*columns, read=akima_vertex, name="approach2_akima")
    # The paper's noise at the losses of these runs: 0.002 on RefinedWeb, 0.01 on OpenWebText2.
    sd = 0.002 if group.startswith("rw") else 0.01
    fit, draws = draw_noise(fit, columns, akima_minima, sd=sd, n_draws=1000, seed=0)
    a, low, high = PORIAN[group]
    bounds = interval(draws.a, 0.95)
    assert bounds is not None
    assert fit.a == pytest.approx(a, abs=0.012)
    assert bounds.high - bounds.low == pytest.approx(high - low, rel=0.4)
    assert bounds.low < a < bounds.high


@pytest.mark.parametrize("points", [3, 5, 7])
def test_local_minima_of_all_draws_are_those_of_the_local_parabola(points: int) -> None:
    rng = np.random.default_rng(0)
    x = np.geomspace(1e6, 1e9, 9)
    losses = 3.0 + 0.02 * (np.log(x) - np.log(4e7))[:, None] ** 2 + 0.02 * rng.random((9, 40))
    found = local_minima(points)(np.log(x), np.log(losses))
    for column, log_x in zip(losses.T, found, strict=True):
        vertex = local_parabola(points)(x, column)
        if np.isfinite(log_x):
            assert float(np.exp(log_x)) == pytest.approx(vertex.x, rel=1e-9)
        else:
            assert vertex.status != "used"


def test_at_6nd_a_draw_moves_n_and_d_by_the_same_factor_in_turn(isoflop_grid: Grid) -> None:
    """C = 6ND: what a noisy loss adds to ln N_opt it takes from ln D_opt, so a + b stays 1."""
    C = np.geomspace(1e17, 1e20, 5)
    N, D = isoflop_grid(CHIN, C, 6.0, 9)
    columns = (N, D, families(N, D, 0.002)[0], np.repeat(C, 9))
    drawn = [
        bootstrap_isoflop(
            fit_isoflop(*columns), *columns, np.arange(len(N)), unit="auto", n_draws=200, seed=0
        ),
        *(
            draw_noise(
                fit_isoflop(*columns, read=read), columns, minima, sd=0.004, n_draws=200, seed=0
            )[1]
            for read, minima in READ_OUTS.values()
        ),
    ]
    for draws in drawn:
        assert np.corrcoef(draws.a, draws.b)[0, 1] < -0.99
