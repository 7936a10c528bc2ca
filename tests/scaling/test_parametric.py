"""Approach 3 and variable projection against planted laws."""

from collections.abc import Callable

import numpy as np
import pytest

from llmtrain.scaling.bootstrap import interval
from llmtrain.scaling.diagnose import refuse_parametric
from llmtrain.scaling.law import Array, LossLaw
from llmtrain.scaling.newton import Link, Objective
from llmtrain.scaling.parametric import (
    FitOptions,
    ParametricFit,
    fit_parametric,
    fit_projection,
    jacobian_condition,
)
from llmtrain.spec.errors import FitRefusedError

CHIN = LossLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
FITS = (fit_parametric, fit_projection)
Grid = Callable[..., tuple[Array, Array]]


def constants(law: LossLaw) -> tuple[float, float, float]:
    return law.E, law.A, law.B


@pytest.mark.parametrize("link", ["log", "linear"])
def test_gradient_and_hessian_are_the_central_differences(link: Link) -> None:
    rng = np.random.default_rng(3)
    objective = Objective(
        x=rng.normal(size=9), y=rng.normal(size=9), loss=2 + rng.random(9), link=link, delta=0.05
    )
    theta = np.array([[0.3, -0.2, 0.5, 0.4, 0.3]])
    weights = rng.random((1, 9)) + 0.5
    _, gradient, hessian = objective.derivatives(theta, weights)
    step = 1e-5
    for k in range(5):
        shift = np.zeros((1, 5))
        shift[0, k] = step
        high, low = (objective.derivatives(theta + s * shift, weights) for s in (1, -1))
        assert gradient[0, k] == pytest.approx(float(high[0][0] - low[0][0]) / (2 * step), rel=1e-6)
        assert hessian[0, :, k] == pytest.approx(
            (high[1][0] - low[1][0]) / (2 * step), rel=1e-4, abs=1e-6
        )


@pytest.mark.parametrize("fitter", FITS)
def test_noise_free_surfaces_come_back(
    fitter: Callable[..., ParametricFit], isoflop_grid: Grid
) -> None:
    rng = np.random.default_rng(11)
    for _ in range(10):
        law = LossLaw(
            E=rng.uniform(0.5, 2.5),
            A=10 ** rng.uniform(1.5, 3.5),
            B=10 ** rng.uniform(1.5, 3.5),
            alpha=rng.uniform(0.2, 0.6),
            beta=rng.uniform(0.2, 0.6),
        )
        N, D = isoflop_grid(law, np.geomspace(1e17, 1e21, 5), 8.0, 9)
        found = fitter(N, D, law.loss(N, D)).law
        assert (found.alpha, found.beta) == pytest.approx((law.alpha, law.beta), abs=1e-6)
        assert constants(found) == pytest.approx(constants(law), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("fitter", FITS)
def test_two_hundred_noise_free_surfaces_come_back(
    fitter: Callable[..., ParametricFit], isoflop_grid: Grid
) -> None:
    rng = np.random.default_rng(12)
    for _ in range(200):
        law = LossLaw(
            E=rng.uniform(0.3, 3.0),
            A=10 ** rng.uniform(1.0, 4.0),
            B=10 ** rng.uniform(1.0, 4.0),
            alpha=rng.uniform(0.15, 0.8),
            beta=rng.uniform(0.15, 0.8),
        )
        N, D = isoflop_grid(law, np.geomspace(1e17, 1e21, 5), 8.0, 9)
        found = fitter(N, D, law.loss(N, D)).law
        assert (found.alpha, found.beta) == pytest.approx((law.alpha, law.beta), abs=1e-4)
        assert constants(found) == pytest.approx(constants(law), rel=1e-3)


def test_order_units_and_duplicates_leave_the_fit_alone(isoflop_grid: Grid) -> None:
    N, D = isoflop_grid(CHIN, np.geomspace(1e17, 1e20, 4), 6.0, 8)
    rng = np.random.default_rng(5)
    loss = CHIN.loss(N, D) * np.exp(0.005 * rng.standard_normal(len(N)))
    plain = fit_parametric(N, D, loss).law
    order = rng.permutation(len(N))
    shuffled = fit_parametric(N[order], D[order], loss[order]).law
    scaled = fit_parametric(N / 1e6, D / 1e9, loss).law
    twice = fit_parametric(np.tile(N, 2), np.tile(D, 2), np.tile(loss, 2)).law
    for other in (shuffled, scaled, twice):
        assert (other.E, other.alpha, other.beta) == pytest.approx(
            (plain.E, plain.alpha, plain.beta), rel=1e-8
        )
    assert scaled.A * 1e6**plain.alpha / plain.A == pytest.approx(1.0, rel=1e-7)


def test_an_added_constant_moves_only_the_floor_of_the_projection(isoflop_grid: Grid) -> None:
    N, D = isoflop_grid(CHIN, np.geomspace(1e17, 1e20, 4), 6.0, 8)
    loss = CHIN.loss(N, D) + 0.01 * np.random.default_rng(5).standard_normal(len(N))
    plain, raised = fit_projection(N, D, loss).law, fit_projection(N, D, loss + 0.5).law
    lift = raised.E - plain.E
    assert lift == pytest.approx(0.5, rel=1e-7)
    assert (raised.alpha, raised.beta) == pytest.approx((plain.alpha, plain.beta), rel=1e-7)


def test_tied_exponents_and_a_given_floor_are_kept(isoflop_grid: Grid) -> None:
    N, D = isoflop_grid(CHIN, np.geomspace(1e17, 1e20, 4), 6.0, 8)
    tied = fit_parametric(N, D, CHIN.loss(N, D), FitOptions(tie_exponents=True)).law
    assert tied.alpha == pytest.approx(tied.beta, rel=1e-12)
    given = fit_parametric(N, D, CHIN.loss(N, D), FitOptions(fixed_floor=1.69)).law
    assert constants(given) == pytest.approx(constants(CHIN), rel=1e-5)
    assert given.alpha == pytest.approx(0.34, abs=1e-6)


def test_one_diverged_run_does_not_move_approach_3(isoflop_grid: Grid) -> None:
    N, D = isoflop_grid(CHIN, np.geomspace(1e17, 1e21, 5), 8.0, 15)
    loss = CHIN.loss(N, D)
    last = np.flatnonzero(np.isclose(6 * N * D, 1e21))
    loss[last[N[last].argmax()]] *= 1.2
    assert fit_parametric(N, D, loss).law.a == pytest.approx(0.4516, abs=1e-3)


def test_a_ladder_of_one_ratio_is_refused_and_three_ratios_are_not() -> None:
    N = np.geomspace(1e7, 1e9, 8)
    noise = np.exp(0.005 * np.random.default_rng(0).standard_normal(8))
    fit = fit_parametric(N, 20 * N, CHIN.loss(N, 20 * N) * noise)
    assert "not identified" in refuse_parametric(fit, interval(np.linspace(0.49, 0.5, 50)))
    assert jacobian_condition(CHIN, N, 20 * N) == pytest.approx(1.15e6, rel=0.01)
    for ratios, condition in (((10, 20, 40), 343), ((5, 20, 80, 320), 179)):
        wide = np.repeat(N, len(ratios))
        tokens = wide * np.tile(ratios, 8)
        assert jacobian_condition(CHIN, wide, tokens) == pytest.approx(condition, abs=1)


def test_too_few_runs_or_sizes_are_refused() -> None:
    N = np.array([1e6, 2e6, 4e6, 8e6, 1.6e7])
    with pytest.raises(FitRefusedError, match="5 runs"):
        fit_parametric(N, 20 * N, CHIN.loss(N, 20 * N))
    N = np.full(8, 1e6)
    with pytest.raises(FitRefusedError, match="1 sizes"):
        fit_parametric(N, np.geomspace(1e7, 1e9, 8), np.geomspace(4, 3, 8))
