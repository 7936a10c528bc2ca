"""Approach 2 and Approach 1 against closed forms and published data."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmtrain.scaling.binning import assign_budgets
from llmtrain.scaling.envelope import fit_envelope, lower_hull
from llmtrain.scaling.isoflop import fit_isoflop, local_parabola, parabola_vertex, read_curves
from llmtrain.scaling.law import Array, LossLaw
from llmtrain.scaling.load import load_runs
from llmtrain.spec.errors import FitRefusedError

CHIN = LossLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
SURFACES = {
    "chin": CHIN,
    "asym": LossLaw(E=1.69, A=406.4, B=410.7, alpha=0.465, beta=0.155),
    "sym": LossLaw(E=1.69, A=400.0, B=400.0, alpha=0.31, beta=0.31),
}
BIAS = {
    ("chin", "centred"): (-0.33, -1.30, -2.90, -5.10),
    ("chin", "3D*"): (7.11, 5.69, 3.38, 0.24),
    ("chin", "drift"): (11.61, 9.83, 6.94, 3.05),
    ("asym", "centred"): (-1.67, -6.50, -13.91, -23.12),
    ("asym", "3D*"): (19.22, 14.41, 6.96, -2.42),
    ("asym", "drift"): (34.57, 30.04, 22.97, 14.00),
    ("sym", "centred"): (0.0, 0.0, 0.0, 0.0),
    ("sym", "3D*"): (3.97, 3.47, 2.65, 1.51),
    ("sym", "drift"): (6.07, 5.17, 3.70, 1.69),
}
PORIAN = {
    "rw_base_warm-long_decay-kaplan_count-kaplan_train": (1.209, 3),
    "rw_base_warm-long_decay-kaplan_count-standard_val": (1.038, 3),
    "rw_base_warm-short_decay-kaplan_count-standard_val": (0.659, 0),
    "rw_base_warm-short_decay-chinchilla_count-standard_val": (0.563, 0),
    "rw_tuned_warm-short_decay-const_count-standard_val": (0.514, 0),
    "rw_base_warm-long_decay-kaplan_count-attention_train": (0.901, 4),
    "owt2_base_warm-long_decay-kaplan_count-standard_val": (0.845, 2),
}
CENTRES: dict[str, Callable[[Array], Array]] = {
    "centred": np.ones_like,
    "3D*": lambda log_c: np.full_like(log_c, 3.0),
    "drift": lambda log_c: 3.0 ** ((log_c - log_c.min()) / np.ptp(log_c)),
}


def grid(law: LossLaw, reach: float, centre: str) -> tuple[Array, Array, Array]:
    """N, D, C of five budgets with 15 token counts each."""
    budgets = np.array([1e17, 1e18, 1e19, 1e20, 1e21])
    shift = CENTRES[centre](np.log(budgets))
    C = np.repeat(budgets, 15)
    D = np.asarray(law.d_opt(C)) * np.repeat(shift, 15)
    D = D * np.tile(np.geomspace(1 / reach, reach, 15), 5)
    return C / 6 / D, D, C


@pytest.mark.parametrize(("surface", "centre"), BIAS)
def test_noise_free_parabolas_have_their_known_bias(surface: str, centre: str) -> None:
    law = SURFACES[surface]
    for reach, percent in zip((2.0, 4.0, 8.0, 16.0), BIAS[surface, centre], strict=True):
        N, D, C = grid(law, reach, centre)
        fit = fit_isoflop(N, D, law.loss(N, D), C, drop_edges=False)
        error = 100 * (float(fit.tokens_law.at(1e24)) / float(law.d_opt(1e24)) - 1)
        assert error == pytest.approx(percent, abs=0.02)


def test_a_constant_centre_gives_the_exact_exponent_and_a_drifting_one_does_not() -> None:
    N, D, C = grid(CHIN, 4.0, "centred")
    assert fit_isoflop(N, D, CHIN.loss(N, D), C).b == pytest.approx(0.548387, abs=1e-6)
    N, D, C = grid(CHIN, 4.0, "drift")
    assert fit_isoflop(N, D, CHIN.loss(N, D), C).b == pytest.approx(0.555690, abs=1e-6)


def test_the_vertex_of_an_exact_parabola_is_found_with_repeated_sizes() -> None:
    x = np.repeat(np.geomspace(1e6, 1e8, 7), 2)
    loss = 3.0 + 0.05 * (np.log(x) - np.log(7e6)) ** 2
    vertex = parabola_vertex(x, loss)
    assert vertex.status == "used"
    assert vertex.x == pytest.approx(7e6, rel=1e-9)
    assert vertex.loss == pytest.approx(3.0, rel=1e-12)


def test_edges_flat_curves_and_thin_budgets_are_named() -> None:
    x = np.geomspace(1e6, 1e8, 7)
    u = np.log(x)
    assert parabola_vertex(x, 3 + 0.05 * (u - np.log(5e5)) ** 2).status == "edge"
    assert parabola_vertex(x, 3 - 0.05 * (u - np.log(1e7)) ** 2).status == "no minimum"
    assert parabola_vertex(x[:3], 3 + 0.05 * (u[:3] - np.log(2e6)) ** 2).status == "thin"


def test_a_window_cut_by_the_end_of_the_grid_is_told_from_a_thin_budget() -> None:
    x = np.geomspace(1e6, 1e8, 7)
    falling, budget = 3 - 0.05 * np.log(x), np.full(7, 1e18)
    (cut,) = read_curves(x, 1e18 / 6 / x, falling, budget, local_parabola(3))
    assert cut.reason == "the lowest loss is too near an end of the 7 sizes for a window on it"
    (thin,) = read_curves(x[:3], 1e18 / 6 / x[:3], falling[:3], budget[:3])
    assert thin.reason == "3 sizes, needs 4"


def test_two_usable_budgets_are_refused_with_the_reason_of_the_third() -> None:
    N, D, C = grid(CHIN, 4.0, "centred")
    keep = (C <= 1e18) | ((C == 1e19) & (np.asarray(CHIN.n_opt(1e19)) * 1.2 < N))
    with pytest.raises(FitRefusedError, match=r"has 2 .*1e\+19: minimum at N"):
        fit_isoflop(N[keep], D[keep], CHIN.loss(N, D)[keep], C[keep])


def test_an_exponent_above_one_is_refused() -> None:
    budgets = np.repeat([1e17, 1e18, 1e19], 5)
    best = 1e7 * (budgets / 1e17) ** 1.2
    N = best * np.tile(np.geomspace(0.5, 2, 5), 3)
    loss = 3 + 0.05 * np.log(N / best) ** 2
    with pytest.raises(FitRefusedError, match="outside"):
        fit_isoflop(N, budgets / 6 / N, loss, budgets)


@pytest.mark.parametrize("group", PORIAN)
def test_full_parabolas_on_porians_rows(public_table: Callable[[str], Path], group: str) -> None:
    runs = load_runs(public_table("porian2024_isoflop.csv"))
    runs, _ = assign_budgets(runs.take(runs.group == group), (), 0.1)
    a, n_edges = PORIAN[group]
    columns = (runs.params, runs.tokens, runs.loss, runs.budget)
    assert fit_isoflop(*columns, drop_edges=False).a == pytest.approx(a, abs=1e-3)
    assert sum(not curve.used for curve in read_curves(*columns)) == n_edges


@pytest.mark.parametrize(("points", "a"), [(3, 0.875), (5, 0.865), (7, 0.861)])
def test_local_windows_on_porians_first_row(
    public_table: Callable[[str], Path], points: int, a: float
) -> None:
    runs = load_runs(public_table("porian2024_isoflop.csv"))
    runs, _ = assign_budgets(runs.take(runs.group == next(iter(PORIAN))), (), 0.1)
    columns = (runs.params, runs.tokens, runs.loss, runs.budget)
    fit = fit_isoflop(*columns, read=local_parabola(points), drop_edges=False)
    assert fit.a == pytest.approx(a, abs=4e-3)


def test_the_hull_on_epochs_rows(public_table: Callable[[str], Path]) -> None:
    for name in ("epoch_chinchilla_240.csv", "epoch_chinchilla_245.csv"):
        runs = load_runs(public_table(name))
        fit = fit_envelope(runs.params, runs.tokens, runs.flops, runs.loss)
        assert len(fit.rows) == 10
        assert (fit.a, fit.b) == pytest.approx((0.51512, 0.48488), abs=1e-5)
        intercepts = np.log([fit.params_law.coefficient, fit.tokens_law.coefficient])
        assert intercepts == pytest.approx([-3.1687, 1.3770], abs=1e-4)


def test_a_row_above_the_hull_changes_nothing_and_the_hull_falls() -> None:
    rng = np.random.default_rng(2)
    log_c = rng.uniform(0, 10, 200)
    log_loss = 1.0 / (1.0 + log_c) + rng.random(200)
    rows = lower_hull(log_c, log_loss)
    assert (np.diff(log_c[rows]) > 0).all()
    assert (np.diff(log_loss[rows]) < 0).all()
    inner = np.setdiff1d(np.arange(200), rows)
    kept = np.delete(np.arange(200), inner[:50])
    again = kept[lower_hull(log_c[kept], log_loss[kept])]
    assert again.tolist() == rows.tolist()


@pytest.mark.parametrize(
    ("tolerance", "n_rows", "a"), [(0.1, 116, 0.516), (0.15, 147, 0.516), (0.2, 160, 0.517)]
)
def test_epochs_rows_snapped_to_nine_budgets(
    public_table: Callable[[str], Path], tolerance: float, n_rows: int, a: float
) -> None:
    budgets = (6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21)
    runs, how = assign_budgets(
        load_runs(public_table("epoch_chinchilla_240.csv")), budgets, tolerance
    )
    assert f"({n_rows} rows)" in how
    fit = fit_isoflop(runs.params, runs.tokens, runs.loss, runs.budget)
    assert fit.a == pytest.approx(a, abs=3e-3)
    edges = [curve.budget for curve in fit.curves if not curve.used]
    assert edges == ([1e20] if tolerance == 0.1 else [])
