"""What wild draws and noisy sweeps must not do to the arithmetic. Warnings are errors here."""

import numpy as np
import pytest

from llmtrain.scaling.bootstrap import (
    LawDraws,
    PowerDraws,
    bootstrap_envelope,
    draw_weights,
    interval,
)
from llmtrain.scaling.cost import SIX_N_D
from llmtrain.scaling.law import LossLaw, fit_power_law
from llmtrain.scaling.parametric import GRADIENT_LIMIT, fit_projection
from llmtrain.spec.errors import FitRefusedError


def test_draws_with_wild_exponents_predict_finite_sizes() -> None:
    draws = PowerDraws(
        params_coefficient=np.array([0.1, 1e-300, 1e300]),
        a=np.array([0.5, -40.0, 45.0]),
        tokens_coefficient=np.array([2.0, 1e250, 1e-250]),
        b=np.array([0.5, 60.0, -60.0]),
        failed=0,
    )
    for values in (draws.n_opt(1e22), draws.d_opt(1e22)):
        assert np.isfinite(values).all()
        assert (values > 0).all()
    assert draws.n_opt(1e22)[0] == pytest.approx(0.1 * 1e11, rel=1e-12)
    assert draws.d_opt(1e22)[0] == pytest.approx(2e11, rel=1e-12)


def test_laws_with_huge_constants_predict_the_loss_of_their_small_terms() -> None:
    draws = LawDraws(
        E=np.array([1.0, 1.0]),
        A=np.array([1e280, 400.0]),
        B=np.array([400.0, 400.0]),
        alpha=np.array([40.0, 0.3]),
        beta=np.array([0.3, 0.3]),
        failed=0,
    )
    found = draws.loss(1e7, 1e9)
    assert found == pytest.approx([1.0 + 1.0 + 400 * 1e9**-0.3, 1 + 400 * (1e-9**0.3 + 1e-7**0.3)])
    flat = LossLaw(E=1.0, A=1e200, B=1e-3, alpha=0.01, beta=0.011)
    n = float(SIX_N_D.n_opt(flat, 1e25))
    assert np.isfinite(n)
    assert np.isfinite(float(SIX_N_D.tokens(1e25, n)))


def test_a_line_too_steep_for_a_float_is_refused_and_its_draw_counts_as_failed() -> None:
    with pytest.raises(FitRefusedError, match="no finite coefficient"):
        fit_power_law(np.array([1e18, 1.0001e18, 1.0002e18]), np.array([1e6, 1e7, 1e9]))
    C = np.concatenate([1e18 * np.linspace(1.0, 1.0001, 6), [1e20]])
    N = np.geomspace(1e6, 1e9, 7)
    loss = 4.0 - 0.1 * np.arange(7.0)
    draws = bootstrap_envelope(N, C / 6 / N, C, loss, draw_weights(np.arange(7), 200, 0))
    assert draws.failed + len(draws.a) == 200
    bounds = interval(draws.n_opt(1e24))
    assert bounds is not None
    assert 0 < bounds.low <= bounds.high < np.inf


@pytest.mark.parametrize("seed", range(10))
def test_noisy_small_sweeps_are_certified(seed: int) -> None:
    """48 runs of 2 to 10 % noise, four budgets in one decade: the sum of squares is large there."""
    rng = np.random.default_rng(seed)
    law = LossLaw(
        E=rng.uniform(0.3, 1.2),
        A=10 ** rng.uniform(1.0, 2.0),
        B=10 ** rng.uniform(1.5, 3.0),
        alpha=rng.uniform(0.3, 0.5),
        beta=rng.uniform(0.3, 0.5),
    )
    N = np.tile(np.repeat(np.geomspace(3.5e3, 6e4, 6), 2), 4)
    D = np.repeat(np.geomspace(3e10, 3e11, 4), 12) / 6 / N
    loss = law.loss(N, D) + rng.choice([0.02, 0.05, 0.1]) * rng.standard_normal(48)
    proof = fit_projection(N, D, loss).certificate
    assert proof.gradient < 0.01 * GRADIENT_LIMIT
    assert proof.agreeing > proof.starts / 2
