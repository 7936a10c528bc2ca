"""The closed forms of section 3.3 of Hoffmann et al. 2022, and the printed laws."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from llmtrain.scaling.cost import CostModel, fit_cost
from llmtrain.scaling.law import LossLaw, PowerLaw, fit_power_law
from llmtrain.scaling.published import REGISTRY, published_law
from llmtrain.spec.errors import ConfigError

BESIROGLU = published_law("besiroglu").loss_law
assert BESIROGLU is not None
CHINCHILLA_TABLES = {
    "hoffmann_a1": (
        (1.92e19, 8.0e9, 4e8), (1.21e20, 20.2e9, 1e9), (1.23e22, 205.1e9, 1e10),
        (5.76e23, 1.5e12, 67e9), (3.85e24, 3.7e12, 175e9), (9.90e24, 5.9e12, 280e9),
        (3.43e25, 11e12, 520e9), (1.27e26, 21.2e12, 1e12), (1.30e28, 216.2e12, 1e13),
    ),
    "hoffmann_a2": (
        (1.84e19, 7.7e9, 4e8), (1.20e20, 20e9, 1e9), (1.32e22, 219.5e9, 1e10),
        (6.88e23, 1.7e12, 67e9), (4.54e24, 4.3e12, 175e9), (1.18e25, 7.1e12, 280e9),
        (4.19e25, 13.4e12, 520e9), (1.59e26, 26.5e12, 1e12), (1.75e28, 292e12, 1e13),
    ),
    "hoffmann_a3_table": (
        (2.21e19, 9.2e9, 4e8), (1.62e20, 27.1e9, 1e9), (2.46e22, 410.1e9, 1e10),
        (1.71e24, 4.1e12, 67e9), (1.26e25, 12e12, 175e9), (3.52e25, 20.1e12, 280e9),
        (1.36e26, 43.5e12, 520e9), (5.65e26, 94.1e12, 1e12), (8.55e28, 1425.5e12, 1e13),
    ),
}  # fmt: skip


@pytest.mark.parametrize("C", [1e17, 5.76e23])
def test_closed_form_optimum_is_what_a_numerical_search_finds(C: float) -> None:
    law = LossLaw(E=1.7, A=300.0, B=900.0, alpha=0.31, beta=0.41)
    found = minimize_scalar(
        lambda x: law.loss(float(np.exp(x)), C / 6 / float(np.exp(x))),
        bounds=(5, 35),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert float(law.n_opt(C)) == pytest.approx(np.exp(found.x), rel=1e-5)
    assert float(law.loss_opt(C)) == pytest.approx(found.fun, rel=1e-12)
    assert float(law.n_opt(C) * law.d_opt(C)) * 6 == pytest.approx(C, rel=1e-12)


def test_a_run_at_the_optimum_wastes_nothing_and_any_other_wastes_something() -> None:
    N, D = float(BESIROGLU.n_opt(1e22)), float(BESIROGLU.d_opt(1e22))
    assert BESIROGLU.wasted_share(N, D) == pytest.approx(0.0, abs=1e-12)
    assert BESIROGLU.wasted_share(3 * N, D / 3) > 0.01
    assert BESIROGLU.wasted_share(N / 3, 3 * D) > 0.01


def test_units_of_n_and_d_leave_the_exponents_alone() -> None:
    law = LossLaw(E=1.7, A=300.0, B=900.0, alpha=0.31, beta=0.41)
    millions = LossLaw(E=1.7, A=300.0 * 1e6**-0.31, B=900.0, alpha=0.31, beta=0.41)
    assert millions.a == law.a
    assert millions.loss(70.0, 1e12) == pytest.approx(law.loss(70e6, 1e12), rel=1e-14)


@pytest.mark.parametrize(
    ("C", "N", "D"),
    [
        (1.92e19, 366e6, 8.74e9),
        (1.23e22, 10.06e9, 204e9),
        (5.76e23, 72.25e9, 1.329e12),
        (1.27e26, 1.148e12, 18.4e12),
    ],
)
def test_besiroglu_gives_its_known_optima(C: float, N: float, D: float) -> None:
    assert float(BESIROGLU.n_opt(C)) == pytest.approx(N, rel=2e-3)
    assert float(BESIROGLU.d_opt(C)) == pytest.approx(D, rel=2e-3)
    assert (BESIROGLU.G, BESIROGLU.kappa) == pytest.approx((0.11963, 1967.86), rel=1e-4)


def test_full_precision_and_rounded_constants_of_hoffmann_differ_as_known() -> None:
    tex = published_law("hoffmann_a3_tex").loss_law
    rounded = published_law("hoffmann_a3_rounded").loss_law
    assert tex is not None
    assert rounded is not None
    assert (tex.a, tex.G) == pytest.approx((0.45653, 1.30005), rel=1e-4)
    assert (rounded.a, rounded.G) == pytest.approx((0.45161, 1.34471), rel=1e-4)
    ratios = [float(law.d_opt(5.76e23) / law.n_opt(5.76e23)) for law in (tex, rounded)]
    assert ratios == pytest.approx([58.9, 92.6], rel=2e-3)
    assert "two digits" in published_law("hoffmann_a3_rounded").warning


@pytest.mark.parametrize("key", CHINCHILLA_TABLES)
def test_the_rows_of_the_chinchilla_tables_return_their_law(key: str) -> None:
    rows = np.array(CHINCHILLA_TABLES[key])
    law = published_law(key)
    params = fit_power_law(rows[:, 0], rows[:, 2])
    tokens = fit_power_law(rows[:, 0], rows[:, 1])
    assert params.exponent == pytest.approx(law.params_law.exponent, abs=2e-3)
    assert tokens.exponent == pytest.approx(law.tokens_law.exponent, abs=2e-3)
    ratio = rows[:, 0] / (6 * rows[:, 1] * rows[:, 2])
    assert ratio.min() > 0.95
    assert ratio.max() < 1.045


def test_kaplans_law_gives_7_8b_parameters_at_1e21() -> None:
    assert float(published_law("kaplan").params_law.at(1e21)) == pytest.approx(7.8e9, rel=0.01)


def test_every_alias_names_one_law() -> None:
    names = [name for law in REGISTRY for name in (law.key, *law.aliases)]
    assert len(names) == len(set(names))
    with pytest.raises(ConfigError, match="besiroglu2024"):
        published_law("nobody2031")


def test_a_power_law_inverts() -> None:
    law = PowerLaw(coefficient=0.1, exponent=0.49)
    assert float(law.inverse(law.at(3e20))) == pytest.approx(3e20, rel=1e-12)


def test_optimum_at_recorded_flops_is_what_a_numerical_search_finds() -> None:
    law = LossLaw(E=0.9, A=60.0, B=90.0, alpha=0.38, beta=0.33)
    cost = CostModel(factor=2.7, slope=-0.06, worst=0.0)
    found = minimize_scalar(
        lambda x: law.loss(float(np.exp(x)), float(cost.tokens(1e12, np.exp(x)))),
        bounds=(5, 20),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert float(cost.n_opt(law, 1e12)) == pytest.approx(np.exp(found.x), rel=1e-5)
    slope = np.log(cost.n_opt(law, 1e13) / cost.n_opt(law, 1e12)) / np.log(10)
    assert float(slope) == pytest.approx(float(cost.exponent(law.alpha, law.beta)), rel=1e-9)


def test_a_cost_model_is_exactly_6nd_where_the_flops_are() -> None:
    N, D = np.geomspace(1e6, 1e8, 5), np.geomspace(1e9, 1e8, 5)
    assert fit_cost(N, D, 6 * N * D).is_exact
    fitted = fit_cost(N, D, 6 * N * D * 3.0 * N**-0.05)
    assert (fitted.factor, fitted.slope) == pytest.approx((3.0, -0.05), rel=1e-9)


def test_constants_that_are_no_law_are_refused() -> None:
    with pytest.raises(ConfigError, match="alpha"):
        LossLaw(E=1.0, A=1.0, B=1.0, alpha=-0.1, beta=0.3)
    with pytest.raises(ConfigError, match="E="):
        LossLaw(E=float("nan"), A=1.0, B=1.0, alpha=0.1, beta=0.3)


# Pearce and Song 2024 (2406.12907): counting N without embeddings at small scale turns a law of
# total parameters with a near one half into Kaplan's .73 or more.
@pytest.mark.parametrize(
    ("key", "total", "non_embedding"),
    [("besiroglu2024", 0.513, 0.7805), ("hoffmann_a3_tex", 0.457, 0.7388)],
)
def test_leaving_the_embedding_out_of_n_gives_kaplans_exponent(
    key: str, total: float, non_embedding: float
) -> None:
    law = published_law(key).loss_law
    assert law is not None
    n = np.logspace(2.9, 9.2, 20)
    tokens = np.logspace(6, 25, 1000)
    n_total = n + 47_491 * n ** (1 / 3)
    budgets = np.logspace(12.95, 20.7, 100)
    best = []
    for C in budgets:
        nearest = np.abs(np.log(6 * n[:, None] * tokens / C)).argmin(axis=1)
        best.append(n[law.loss(n_total, tokens[nearest]).argmin()])
    slope = fit_power_law(budgets, np.array(best)).exponent
    assert law.a == pytest.approx(total, abs=5e-4)
    assert slope == pytest.approx(non_embedding, abs=0.005)


def test_the_optimum_without_embeddings_follows_its_closed_form() -> None:
    law, gamma = BESIROGLU, 47_491.0
    for n in (1e3, 1e6, 1e11):
        n_total = n + gamma * n ** (1 / 3)
        slope_of_total = n + gamma * n ** (1 / 3) / 3
        ratio = law.beta * law.B / (law.alpha * law.A)
        tokens = (
            ratio ** (1 / law.beta)
            * n_total ** ((1 + law.alpha) / law.beta)
            * slope_of_total ** (-1 / law.beta)
        )
        C = 6 * n * tokens

        def loss(x: float, C: float = C) -> float:
            size = float(np.exp(x))
            return float(law.loss(size + gamma * size ** (1 / 3), C / 6 / size))

        found = minimize_scalar(
            loss, bounds=(np.log(n) - 1, np.log(n) + 1), method="bounded", options={"xatol": 1e-9}
        )
        assert float(np.exp(found.x)) == pytest.approx(n, rel=1e-3)
