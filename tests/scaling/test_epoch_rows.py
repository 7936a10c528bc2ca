"""Surface fits on Epoch's extraction of the Chinchilla runs against published numbers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmtrain.scaling.bootstrap import (
    bootstrap_parametric,
    bootstrap_residuals,
    draw_weights,
    interval,
    noise_varies,
)
from llmtrain.scaling.diagnose import refuse_parametric
from llmtrain.scaling.law import Array, LossLaw
from llmtrain.scaling.load import load_runs
from llmtrain.scaling.parametric import FitOptions, fit_parametric, fit_projection, objective_at
from llmtrain.scaling.published import published_law


def constants(law: LossLaw) -> tuple[float, float, float]:
    return law.E, law.A, law.B


@pytest.fixture
def epoch(public_table: Callable[[str], Path]) -> tuple[Array, Array, Array, Array]:
    runs = load_runs(public_table("epoch_chinchilla_240.csv"))
    return runs.params, runs.tokens, runs.loss, runs.flops


def test_epochs_240_rows_give_their_known_optimum(epoch: tuple[Array, ...]) -> None:
    N, D, loss, _ = epoch
    fit = fit_parametric(N, D, loss)
    assert fit.certificate.objective == pytest.approx(0.0010182740, abs=1e-9)
    assert constants(fit.law) == pytest.approx((1.81722, 477.83, 2143.4), rel=1e-4)
    assert (fit.law.alpha, fit.law.beta) == pytest.approx((0.34731, 0.36717), abs=2e-5)
    assert fit.law.a == pytest.approx(0.5139, abs=2e-4)
    assert fit.certificate.gradient < 1e-8
    assert fit.certificate.agreeing > 100
    assert refuse_parametric(fit, interval(np.linspace(0.49, 0.54, 50))) == ""


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hoffmann_a3_tex", 0.00123116),
        ("hoffmann_a3_rounded", 0.00412101),
        ("besiroglu2024", 0.00102284),
    ],
)
def test_objective_at_published_constants(epoch: tuple[Array, ...], key: str, value: float) -> None:
    law = published_law(key).loss_law
    assert law is not None
    assert objective_at(law, *epoch[:3]) == pytest.approx(value, abs=1e-7)


def test_five_outliers_move_epochs_exponent_by_a_twentieth(
    public_table: Callable[[str], Path],
) -> None:
    runs = load_runs(public_table("epoch_chinchilla_245.csv"))
    fit = fit_parametric(runs.params, runs.tokens, runs.loss)
    assert fit.certificate.objective == pytest.approx(0.00182601, abs=1e-7)
    assert (fit.law.E, fit.law.alpha, fit.law.beta) == pytest.approx(
        (1.891, 0.349, 0.453), abs=3e-3
    )
    assert fit.law.a == pytest.approx(0.565, abs=3e-3)


@pytest.mark.parametrize(("delta", "a"), [(1e-4, 0.5126), (1e-2, 0.5184), (1.0, 0.5298)])
def test_the_corner_of_the_huber_loss_moves_the_exponent(
    epoch: tuple[Array, ...], delta: float, a: float
) -> None:
    N, D, loss, _ = epoch
    assert fit_parametric(N, D, loss, FitOptions(delta=delta)).law.a == pytest.approx(a, abs=1e-3)


@pytest.mark.parametrize(
    ("least", "n_rows", "a"), [(1e19, 192, 0.412), (3e19, 158, 0.386), (1e20, 104, 0.376)]
)
def test_epochs_exponent_falls_as_small_budgets_leave(
    epoch: tuple[Array, ...], least: float, n_rows: int, a: float
) -> None:
    N, D, loss, C = epoch
    kept = least <= C
    assert kept.sum() == n_rows
    assert fit_parametric(N[kept], D[kept], loss[kept]).law.a == pytest.approx(a, abs=2e-3)


def test_projection_on_epochs_rows(epoch: tuple[Array, ...]) -> None:
    N, D, loss, C = epoch
    law = fit_projection(N, D, loss).law
    assert (law.E, law.alpha, law.beta) == pytest.approx((1.88281, 0.357615, 0.427621), abs=2e-5)
    kept = C < 1e21
    law = fit_projection(N[kept] / 1e6, D[kept] / 1e9, loss[kept]).law
    assert constants(law) == pytest.approx((1.9051, 4.0005, 1.0509), abs=5e-4)
    assert (law.alpha, law.beta, law.a) == pytest.approx((0.3511, 0.4587, 0.5665), abs=2e-4)


@pytest.mark.parametrize(
    ("options", "E", "alpha", "beta"),
    [
        (FitOptions(delta=np.inf), 1.8926, 0.3522, 0.4430),
        (FitOptions(link="linear"), 1.82496, 0.323893, 0.405790),
        (FitOptions(), 1.82054, 0.327128, 0.396086),
    ],
)
def test_other_losses_on_epochs_rows_below_1e21(
    epoch: tuple[Array, ...], options: FitOptions, E: float, alpha: float, beta: float
) -> None:
    N, D, loss, C = epoch
    kept = C < 1e21
    law = fit_parametric(N[kept], D[kept], loss[kept], options).law
    assert (law.E, law.alpha, law.beta) == pytest.approx((E, alpha, beta), abs=2e-4)


@pytest.mark.slow
def test_the_papers_4500_starts_find_the_same_optimum(epoch: tuple[Array, ...]) -> None:
    N, D, loss, _ = epoch
    fit = fit_parametric(N, D, loss, FitOptions(starts="hoffmann"))
    assert fit.certificate.starts == 4500
    assert fit.certificate.objective == pytest.approx(0.0010182740, abs=1e-9)


def test_epochs_bootstrap_has_its_known_width(epoch: tuple[Array, ...]) -> None:
    N, D, loss, _ = epoch
    fit = fit_parametric(N, D, loss)
    weights = draw_weights(np.arange(len(N)), 1000, 0)
    draws = bootstrap_parametric(fit, N, D, loss, weights)
    assert draws.failed == 0
    assert float(draws.a.std()) == pytest.approx(0.019, abs=3e-3)
    bounds = interval(draws.a, 0.8)
    assert bounds is not None
    assert bounds.high - bounds.low == pytest.approx(0.047, abs=8e-3)
    n = np.array([float(law.n_opt(5.76e23)) for law in draws.laws()])
    ratios = np.percentile(5.76e23 / 6 / n / n, [10, 50, 90])
    assert ratios == pytest.approx([9.9, 17.2, 27.8], rel=0.1)


def test_epochs_noise_varies_so_its_rows_are_resampled(epoch: tuple[Array, ...]) -> None:
    N, D, loss, _ = epoch
    fit = fit_parametric(N, D, loss)
    assert noise_varies(fit, N, D, loss)
    # Redrawn residuals would claim less than half of the known scatter.
    draws = bootstrap_residuals(fit, N, D, loss, n_draws=400, seed=0)
    assert float(draws.a.std()) < 0.5 * 0.019
