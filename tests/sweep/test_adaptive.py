"""The adaptive policy on planted laws: the same pure function that a real sweep asks."""

import dataclasses

import numpy as np
import pytest
from simulator import (
    BUDGETS,
    Surface,
    adaptive_runs,
    cost,
    exponent,
    fixed_runs,
)

from llmtrain.scaling.isoflop import fit_isoflop
from llmtrain.scaling.law import LossLaw
from llmtrain.scaling.precision import cheapest_precision, local_isoflop, local_surface
from llmtrain.spec.build import build
from llmtrain.spec.errors import ConfigError
from llmtrain.spec.sweeps import SweepConfig
from llmtrain.sweep.adaptive import MIN_DEGREES, next_round
from llmtrain.sweep.decision import Measured, columns

LAW = LossLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)


def surface(**changes):
    plain = Surface(law=LAW, noise=0.003, offset=0.0, exponent=LAW.a, seed=7)
    return dataclasses.replace(plain, **changes)


def centres(planted):
    return {budget: planted.centre(budget) for budget in BUDGETS}


def test_the_small_budgets_open_first_and_centre_the_large_one():
    planted = surface(offset=0.6, noise=1e-4)  # expects 1.8 times the true optimum
    sweep = planted.sweep(width=0.05)
    first = next_round(planted.candidates(), [], sweep, centres(planted))
    assert {pick.cell.budget for pick in first.picks} == set(BUDGETS[:2])
    for budget in BUDGETS[:2]:
        sizes = np.log([p.cell.params for p in first.picks if p.cell.budget == budget])
        assert np.diff(sizes) == pytest.approx(np.full(3, 2 * np.log(4) / 3), abs=0.2)
        assert sizes.mean() == pytest.approx(np.log(planted.centre(budget)), abs=0.1)
    runs, _ = adaptive_runs(planted, sweep)
    top = [run.cell.params for run in runs if run.cell.budget == BUDGETS[-1]][:4]
    assert np.log(top).mean() == pytest.approx(np.log(LAW.n_opt(BUDGETS[-1])), abs=0.15)


@pytest.mark.parametrize("offset", [-2.0, 2.0])
def test_a_wrong_expectation_is_found_out_and_every_minimum_bracketed(offset):
    planted = surface(offset=offset)
    runs, rounds = adaptive_runs(planted, planted.sweep(width=0.1))
    assert rounds[-1].stop.startswith("precision")
    side = "lower edge" if offset > 0 else "top edge"
    seen: dict[float, list[float]] = {}
    n_extended = 0
    for pick in (pick for r in rounds for pick in r.picks):
        sizes = seen.setdefault(pick.cell.budget, [])
        if side in pick.reason:
            n_extended += 1
            outside = pick.cell.params < min(sizes) if offset > 0 else pick.cell.params > max(sizes)
            assert outside
        sizes.append(pick.cell.params)
    assert n_extended > 0
    cells = columns([run.cell for run in runs])
    loss = np.array([run.loss for run in runs])
    fit = fit_isoflop(cells.params, cells.tokens, loss, cells.budget)
    assert len(fit.used) == len(BUDGETS)


@pytest.mark.parametrize("method", ["approach2", "surface"])
def test_it_stops_once_the_interval_is_as_narrow_as_asked(method):
    planted = surface()
    runs, rounds = adaptive_runs(planted, planted.sweep(method=method, width=0.08))
    last = exponent(runs, method)
    low, high = rounds[-1].interval
    assert (low, high) == (last.interval.low, last.interval.high)
    assert high - low <= 0.08
    assert last.degrees >= MIN_DEGREES
    before = exponent(runs[: -len(rounds[-2].picks)], method)
    wide = before is None or before.interval.high - before.interval.low > 0.08
    assert wide or before.degrees < MIN_DEGREES


def test_it_stops_once_the_forecast_is_as_sharp_as_asked():
    planted = surface()
    goal = {"forecast_sd": 0.006, "forecast_flops": 1e18}
    runs, rounds = adaptive_runs(planted, planted.sweep(**goal))
    assert "ln L at 1e+18 FLOPs" in rounds[-1].stop
    assert rounds[-1].forecast_sd <= 0.006
    found = local_surface(
        columns([run.cell for run in runs]), np.array([run.loss for run in runs]), 1e18
    )
    assert rounds[-1].forecast_sd == pytest.approx(found.sd(found.forecast_row))


@pytest.mark.parametrize("cap", [5.7e17, 7e17, 1.2e18])
def test_the_cap_is_never_passed(cap):
    planted = surface(noise=0.02)
    runs, rounds = adaptive_runs(planted, planted.sweep(max_flops=cap))
    assert rounds[-1].stop.startswith("cost")
    assert 0.5 * cap < cost(runs) <= cap


def test_the_decision_depends_on_the_runs_alone():
    planted = surface()
    sweep = planted.sweep(width=0.05)
    runs, rounds = adaptive_runs(planted, sweep)
    again, same = adaptive_runs(planted, sweep)
    assert (runs, rounds) == (again, same)
    n = sum(len(r.picks) for r in rounds[:3])
    arguments = (planted.candidates(), runs[:n], sweep, centres(planted))
    assert next_round(*arguments) == rounds[3] == next_round(*arguments)


def test_a_failed_cell_enters_no_fit_and_is_not_tried_again():
    planted = surface(noise=0.02)
    sweep = planted.sweep(width=0.12)
    broken = adaptive_runs(planted, sweep)[1][2].picks[0].cell  # one that pays to run again
    runs: list[Measured] = []
    for _ in range(12):
        decision = next_round(planted.candidates(), runs, sweep, centres(planted))
        for pick in decision.picks:
            loss = np.nan if pick.cell == broken else planted.loss(pick.cell, pick.seed)
            runs.append(Measured(cell=pick.cell, seed=pick.seed, loss=loss))
    assert [run.cell for run in runs].count(broken) == 1
    assert len(runs) > 20


def test_every_seed_of_a_cell_is_another():
    planted = surface(noise=0.02)
    runs, _ = adaptive_runs(planted, planted.sweep(width=0.12))
    keys = [(run.cell.key, run.seed) for run in runs]
    assert len(set(keys)) == len(keys)
    assert max(run.seed for run in runs) > 0


def test_the_interval_of_approach_2_is_the_scatter_of_refits():
    planted = surface()
    cells = columns([run.cell for run in fixed_runs(planted)])
    truth = 2.0 + 0.05 * np.log(cells.params / LAW.n_opt(cells.budget)) ** 2  # parabolas indeed
    rng = np.random.default_rng(0)
    a, sds = [], []
    for _ in range(300):
        loss = truth + 0.005 * rng.standard_normal(len(truth))
        found = local_isoflop(cells, loss)
        a.append(found.a)
        sds.append(found.sd(found.exponent_row))
    assert np.sqrt(np.mean(np.square(sds))) == pytest.approx(np.std(a), rel=0.1)


def test_the_interval_of_the_surface_is_the_scatter_of_refits():
    planted = surface(noise=0.0)
    runs = fixed_runs(planted, sizes=9, span=12.0)
    cells = columns([run.cell for run in runs])
    truth = np.array([run.loss for run in runs])
    rng = np.random.default_rng(0)
    a, sds = [], []
    for _ in range(25):
        found = local_surface(cells, truth * np.exp(2e-4 * rng.standard_normal(len(truth))), 1e18)
        a.append(found.a)
        sds.append(found.sd(found.exponent_row))
    assert np.mean(sds) == pytest.approx(np.std(a), rel=0.35)  # the sd of 25 is known to 14 %
    assert np.mean(a) == pytest.approx(LAW.a, abs=3 * np.mean(sds) / np.sqrt(25))


def test_the_exponents_gradient_is_that_of_finite_differences():
    runs = fixed_runs(surface(noise=0.0), sizes=9, span=12.0)
    cells = columns([run.cell for run in runs])
    cells = dataclasses.replace(cells, flops=cells.flops * cells.params**0.1)  # not 6 N D
    found = local_surface(cells, np.array([run.loss for run in runs]), 1e18)

    def a(alpha: float, beta: float) -> float:
        return beta / (alpha + 1.1 * beta)

    step = 1e-6
    along_alpha = (a(0.34 + step, 0.28) - a(0.34 - step, 0.28)) / (2 * step)
    along_beta = (a(0.34, 0.28 + step) - a(0.34, 0.28 - step)) / (2 * step)
    assert found.exponent_row == pytest.approx([0, 0, 0, along_alpha, along_beta], rel=1e-3)
    assert found.a == pytest.approx(a(0.34, 0.28), rel=1e-3)


def test_the_chosen_cell_is_the_best_of_all_by_brute_force():
    planted = surface()
    runs = fixed_runs(planted)
    cells = columns([run.cell for run in runs])
    local = local_isoflop(cells, np.array([run.loss for run in runs]))
    pool = planted.candidates()
    options = columns(pool)
    row = local.exponent_row
    ((index, share),) = cheapest_precision(
        local, row, options, n_cells=1, enough=0.0, max_flops=np.inf
    )
    information = local.rows(cells).T @ local.rows(cells) / local.noise**2
    after = [
        row @ np.linalg.inv(information + np.outer(j, j) / local.noise**2) @ row
        for j in local.rows(options)
    ]
    before = row @ np.linalg.inv(information) @ row
    assert index == int(((before - np.array(after)) / options.flops).argmax())
    assert share == pytest.approx(1 - after[index] / before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adaptive": {"width": None}}, "would end at max_rounds only"),
        ({"adaptive": {"width": -0.1}}, "sweep.adaptive.width=-0.1 must be a finite number above"),
        ({"adaptive": {"first_sizes": 3}}, "sweep.adaptive.first_sizes=3 must lie in"),
        ({"adaptive": {"forecast_flops": 1e15}}, "must not be below the largest budget"),
        ({"adaptive": {"max_flops": 5e17}}, "is less than first_sizes cells at every budget cost"),
        ({"budgets": [1e16, 1e17]}, "must name at least 3"),
        ({"mode": "lr_bracket", "bracket": {"factors": [1.0, 2.0]}}, "rates on both sides"),
        ({"mode": "lr_bracket", "bracket": {"factors": [0.5, 2.0]}}, "must hold 1"),
        ({"mode": "lr_bracket", "bracket": {"arm": 1.0}}, "must be above 1"),
        ({"mode": "lr_bracket", "bracket": {"budgets": [5e16]}}, "must be among sweep.budgets"),
        ({"mode": "lr_bracket", "sizes_per_budget": 2}, "must be 3 or more for a bracket"),
        ({"lr_min": 0.1, "lr_max": 0.01}, "sweep.lr_min=0.1 must be below"),
        ({"law": ""}, "sweep.law is empty"),
    ],
)
def test_a_mode_that_makes_no_sense_is_refused(changes, message):
    raw = dataclasses.asdict(surface().sweep(width=0.1))
    for key, value in changes.items():
        raw[key] = raw[key] | value if isinstance(value, dict) else value
    with pytest.raises(ConfigError, match=message):
        build(SweepConfig, raw)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["guessed", "known"])
def test_adaptive_needs_fewer_flops_than_the_fixed_grid(kind):
    """Prints what docs/experiments.md quotes; `known`: the fixed grid is centred at the truth."""
    ratios, errors, covered = [], [], []
    for seed in range(100):
        planted = Surface.draw(seed)
        if kind == "known":
            planted = dataclasses.replace(planted, offset=0.0, exponent=planted.law.a)
        fixed = fixed_runs(planted)
        grid = exponent(fixed, "approach2")
        if grid is None:  # a minimum at the edge: the grid answers nothing at any price
            continue
        bounds = grid.interval
        runs, rounds = adaptive_runs(planted, planted.sweep(width=bounds.high - bounds.low))
        assert rounds[-1].stop.startswith("precision")
        found = exponent(runs, "approach2")
        ratios.append(cost(runs) / cost(fixed))
        errors.append((grid.a - planted.law.a, found.a - planted.law.a))
        covered.append(
            [fit.interval.low <= planted.law.a <= fit.interval.high for fit in (grid, found)]
        )
    low, median, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    rms = np.sqrt(np.mean(np.square(errors), axis=0))
    print(
        f"\n{kind}: {len(ratios)} surfaces, FLOPs adaptive / fixed {median:.2f} "
        f"[{low:.2f}, {high:.2f}], error of a {rms[1]:.4f} against {rms[0]:.4f} (rms), "
        f"90 % interval covers {np.mean(covered, axis=0)[1]:.2f} against "
        f"{np.mean(covered, axis=0)[0]:.2f}"
    )
    assert len(ratios) >= 90
    assert high < 1.0
    assert np.mean(covered, axis=0)[1] >= 0.82
