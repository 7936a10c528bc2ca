"""What the fits are worth: read-outs, bias, outliers, influence, profiles, next runs."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmtrain.scaling.akima import akima_vertex
from llmtrain.scaling.analysis import analyze, compare_with
from llmtrain.scaling.bias import correct_isoflop
from llmtrain.scaling.binning import assign_budgets
from llmtrain.scaling.bootstrap import LawDraws
from llmtrain.scaling.compare import Side, compute_multiplier, flops_to_reach
from llmtrain.scaling.config import AnalyzeConfig
from llmtrain.scaling.cost import SIX_N_D, CostModel
from llmtrain.scaling.design import (
    after_run,
    law_jacobian,
    next_runs,
    parameter_covariance,
    should_stop,
    trunk_and_branches,
    variance_gain,
)
from llmtrain.scaling.influence import leave_out
from llmtrain.scaling.isoflop import fit_isoflop
from llmtrain.scaling.isoflop_draws import local_noise
from llmtrain.scaling.law import Array, LossLaw
from llmtrain.scaling.law_file import law_document, read_side
from llmtrain.scaling.load import load_runs
from llmtrain.scaling.outliers import find_outliers
from llmtrain.scaling.parametric import FitOptions, fit_parametric
from llmtrain.scaling.profile import profile_exponent
from llmtrain.spec.errors import FitRefusedError

CHIN = LossLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
SQUARES = FitOptions(delta=np.inf)
PORIAN = {
    "rw_base_warm-long_decay-kaplan_count-kaplan_train": 0.835,
    "rw_base_warm-long_decay-kaplan_count-standard_val": 0.706,
    "rw_base_warm-short_decay-kaplan_count-standard_val": 0.602,
    "rw_base_warm-short_decay-chinchilla_count-standard_val": 0.571,
    "rw_tuned_warm-short_decay-const_count-standard_val": 0.497,
    "rw_tuned_warm-long_decay-const_count-kaplan_train": 0.711,
    "rw_base_warm-long_decay-kaplan_count-attention_train": 0.717,
    "rw_base_warm-short_decay-kaplan_count-attention_train": 0.622,
    "rw_base_warm-short_decay-chinchilla_count-attention_train": 0.577,
    "rw_tuned_warm-short_decay-const_count-attention_train": 0.505,
    "owt2_base_warm-long_decay-kaplan_count-kaplan_train": 0.864,
    "owt2_base_warm-long_decay-kaplan_count-standard_val": 0.699,
    "owt2_base_warm-short_decay-kaplan_count-standard_val": 0.603,
    "owt2_base_warm-short_decay-chinchilla_count-standard_val": 0.574,
    "owt2_tuned_warm-short_decay-const_count-standard_val": 0.518,
}


def grid(reach: float, drift: float = 1.0) -> tuple[Array, Array, Array]:
    """N, D, C of five budgets of 15 cells, the centre drifting from the optimum to `drift` D*."""
    budgets = np.array([1e17, 1e18, 1e19, 1e20, 1e21])
    C = np.repeat(budgets, 15)
    D = np.asarray(CHIN.d_opt(C)) * np.tile(np.geomspace(1 / reach, reach, 15), 5)
    D = D * np.repeat(np.geomspace(1.0, drift, 5), 15)
    return C / 6 / D, D, C


@pytest.mark.parametrize("group", PORIAN)
def test_akima_read_outs_give_porians_exponents(
    public_table: Callable[[str], Path], group: str
) -> None:
    runs = load_runs(public_table("porian2024_isoflop.csv"))
    runs, _ = assign_budgets(runs.take(runs.group == group), (), 0.1)
    fit = fit_isoflop(runs.params, runs.tokens, runs.loss, runs.budget, read=akima_vertex)
    assert fit.a == pytest.approx(PORIAN[group], abs=0.01)


def test_akima_finds_the_minimum_of_a_skewed_valley_and_names_an_edge() -> None:
    x = np.geomspace(1e6, 1e9, 25)
    loss = 2 + 300 * x**-0.35 + 1e-5 * x**0.5
    truth = (0.35 * 300 / (0.5 * 1e-5)) ** (1 / 0.85)
    vertex = akima_vertex(x, loss)
    assert vertex.status == "used"
    # The grid inside an interval is 25 points wide: half a step, plus the spline's error.
    assert vertex.x == pytest.approx(truth, rel=0.01)
    assert akima_vertex(x, 1 / x).status == "edge"
    assert akima_vertex(x[:3], loss[:3]).status == "thin"


def test_local_noise_ignores_smooth_curves_and_measures_scatter() -> None:
    u = np.linspace(0.0, 3.0, 400)
    smooth = 1.0 + 0.2 * u + 0.3 * u * u
    assert np.abs(local_noise(u, smooth)).max() < 1e-12
    noisy = smooth + 0.01 * np.random.default_rng(0).standard_normal(400)
    assert np.sqrt(np.mean(local_noise(u, noisy) ** 2)) == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize(("reach", "drift"), [(4.0, 1.0), (4.0, 3.0), (16.0, 3.0)])
def test_the_bias_of_the_parabolas_is_predicted_and_removed(reach: float, drift: float) -> None:
    N, D, C = grid(reach, drift)
    fit = fit_isoflop(N, D, CHIN.loss(N, D), C)
    bias = correct_isoflop(fit, CHIN, SIX_N_D, N, D, C)
    assert fit.a - bias.exponent_shift == pytest.approx(CHIN.a, abs=1e-9)
    assert bias.corrected.a == pytest.approx(CHIN.a, abs=1e-9)
    ratio = float(bias.corrected.tokens_law.at(1e24) / CHIN.d_opt(1e24))
    assert ratio == pytest.approx(1.0, abs=1e-9)


def test_a_diverged_run_is_named_and_alone() -> None:
    N, D, C = grid(8.0)
    loss = CHIN.loss(N, D)
    last = np.flatnonzero(C == 1e21)
    bad = last[N[last].argmax()]
    loss[bad] *= 1.2
    assert fit_isoflop(N, D, loss, C).a == pytest.approx(0.425, abs=1e-3)
    found = find_outliers(N, D, loss, C, fit_parametric(N, D, loss).law)
    assert np.flatnonzero(found).tolist() == [bad]
    kept = ~found
    robust = fit_isoflop(N[kept], D[kept], loss[kept], C[kept]).a
    assert robust == pytest.approx(0.4516, abs=0.01)


def test_sound_runs_are_not_called_outliers() -> None:
    N, D, C = grid(4.0)
    rng = np.random.default_rng(1)
    named = 0
    for _ in range(20):
        loss = CHIN.loss(N, D) * np.exp(0.004 * rng.standard_normal(len(N)))
        named += int(find_outliers(N, D, loss, C, fit_parametric(N, D, loss, SQUARES).law).sum())
    assert named == 0


def test_the_profile_interval_covers_and_is_near_the_linear_one() -> None:
    N, D, _ = grid(4.0)
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(30):
        loss = CHIN.loss(N, D) * np.exp(0.004 * rng.standard_normal(len(N)))
        profile = profile_exponent(fit_parametric(N, D, loss, SQUARES), N, D, loss)
        assert profile.ratio.min() >= 0
        assert profile.interval is not None
        hits += profile.interval.low <= CHIN.a <= profile.interval.high
    # 30 trials of 90 %: fewer than 21 happens once in five hundred.
    assert hits >= 21


def test_the_run_that_carries_the_exponent_is_named(tmp_path: Path) -> None:
    N, D, _ = grid(4.0)
    loss = CHIN.loss(N, D)
    loss[70] *= 1.05
    lines = [f"{n!s},{d!s},{v!s}" for n, d, v in zip(N, D, loss, strict=True)]
    path = tmp_path / "runs.csv"
    path.write_text("params,tokens,loss\n" + "\n".join(lines), encoding="utf-8")
    runs, _ = assign_budgets(load_runs(path), (), 0.1)
    fit = fit_parametric(N, D, loss, SQUARES)
    found = {item.kind: item for item in leave_out(fit, runs, SIX_N_D)}
    assert found["run"].worst == "row 72"
    clean = np.arange(len(N)) != 70
    expected = fit_parametric(N[clean], D[clean], loss[clean], SQUARES).law.a - fit.law.a
    assert found["run"].shift == pytest.approx(expected, abs=1e-8)
    assert found["run"].n_units == 75
    assert found["budget"].n_units == 5


def test_the_jacobian_of_the_law_is_the_central_difference() -> None:
    N, D = np.array([1e8, 1e9]), np.array([3e9, 2e10])
    names = ("E", "A", "B", "alpha", "beta")
    for k, name in enumerate(names):
        value = getattr(CHIN, name)
        step = 1e-6 * value
        high, low = (dataclasses.replace(CHIN, **{name: value + s * step}) for s in (1, -1))
        slope = (np.log(high.loss(N, D)) - np.log(low.loss(N, D))) / (2 * step)
        scale = value if name in ("A", "B") else 1.0
        assert law_jacobian(CHIN, N, D)[:, k] == pytest.approx(slope * scale, rel=1e-6)


def test_the_gain_of_a_run_is_the_drop_of_the_variance_it_causes() -> None:
    N, D, _ = grid(4.0)
    noise = 0.004
    before = parameter_covariance(CHIN, N, D, noise)
    target = law_jacobian(CHIN, np.array([1e10]), np.array([2e11]))
    row = law_jacobian(CHIN, np.array([3e9]), np.array([3e10]))
    gain = variance_gain(before, target, row, noise)[0]
    after = parameter_covariance(CHIN, np.append(N, 3e9), np.append(D, 3e10), noise)
    assert after_run(before, row[0], noise) == pytest.approx(after, rel=1e-5)
    drop = float((target @ (before - after) @ target.T)[0, 0])
    assert gain == pytest.approx(drop, rel=1e-5)


def test_next_runs_lower_the_forecasts_error_and_a_cheap_twin_wins() -> None:
    N, D, C = grid(4.0)
    small = C <= 1e19
    candidates = (np.array([1e9, 1e9, 1e7]), np.array([2e10, 2e10, 1e9]), np.array([2.0, 1.0, 1.0]))
    chosen = next_runs(CHIN, (N[small], D[small]), (1e10, 2e11), candidates, noise=0.004, n_runs=3)
    assert chosen[0].cost == 1.0
    assert chosen[0].params == 1e9
    errors = [chosen[0].sd_before, *(run.sd_after for run in chosen)]
    assert (np.diff(errors) < 0).all()
    assert should_stop(chosen, tolerance=1.0)
    assert not should_stop(chosen, tolerance=0.0)
    assert should_stop([], tolerance=0.0)


def test_a_ladder_of_one_ratio_ranks_no_next_run() -> None:
    N = np.geomspace(1e7, 1e7, 4)
    with pytest.raises(FitRefusedError, match="vary D/N"):
        parameter_covariance(CHIN, N, 20 * N, 0.01)


def test_branches_of_a_trunk_cost_less_than_separate_runs() -> None:
    tokens = np.array([1e9, 2e9, 4e9])
    cost = trunk_and_branches(tokens, 6e8, 0.2)
    # One trunk of .8 * 4e9 tokens and three cooldowns of a fifth each.
    assert cost.sum() == pytest.approx(6e8 * (3.2e9 + 0.2 * 7e9))
    assert cost.sum() < 6e8 * tokens.sum()


def draws_of(law: LossLaw) -> LawDraws:
    ones = np.ones(40)
    return LawDraws(
        E=law.E * ones, A=law.A * ones, B=law.B * ones, alpha=law.alpha * ones,
        beta=law.beta * ones, failed=0,
    )  # fmt: skip


def side(name: str, law: LossLaw, flops: str = "6ND") -> Side:
    return Side(name=name, law=law, draws=draws_of(law), cost=SIX_N_D, params="total", flops=flops)


def test_a_sweep_that_needs_half_the_compute_has_multiplier_two() -> None:
    # N and D worth 1.5 and 4/3 times as much: 6ND for the same loss falls by their product, 2.
    better = dataclasses.replace(
        CHIN, A=CHIN.A * 1.5**-CHIN.alpha, B=CHIN.B * (4 / 3) ** -CHIN.beta
    )
    for item in compute_multiplier(side("a", CHIN), side("b", better), np.array([1e18, 1e21])):
        assert item.value == pytest.approx(2.0, rel=1e-9)
        assert item.interval is not None
        assert item.interval.low == pytest.approx(2.0, rel=1e-9)
    with pytest.raises(FitRefusedError, match="counts FLOPs"):
        compute_multiplier(side("a", CHIN), side("b", better, "full_attention"), np.array([1e18]))


def test_the_flops_that_reach_a_loss_invert_the_optimum_under_any_cost() -> None:
    for cost in (SIX_N_D, CostModel(factor=2.5, slope=-0.07, worst=0.0)):
        loss = float(cost.loss_opt(CHIN, 3e20))
        assert flops_to_reach(CHIN, cost, loss) == pytest.approx(3e20, rel=1e-9)
    assert flops_to_reach(CHIN, SIX_N_D, 1.5) == float("inf")


def test_a_sweep_against_itself_has_multiplier_one_with_a_real_interval(
    planted_sweep: Callable[..., Path], analyze_config: Callable[..., AnalyzeConfig], tmp_path: Path
) -> None:
    config = analyze_config(bootstrap=100)
    analysis = analyze(config, load_runs(planted_sweep()))
    path = tmp_path / "law.json"
    path.write_text(json.dumps(law_document(analysis, "")), encoding="utf-8")
    compared = compare_with(analysis, read_side(path))
    assert len(compared.multipliers) == 5
    for item in compared.multipliers:
        assert item.value == pytest.approx(1.0, rel=1e-6)
        assert item.interval is not None
        assert item.interval.low < 1.0 < item.interval.high
