"""A recipe mistuned by a known amount: the bracket finds the rates and what they do to the law."""

import dataclasses

import numpy as np
import pytest

from llmtrain.scaling.analysis import analyze
from llmtrain.scaling.bracket_table import bracket_line, bracket_table
from llmtrain.scaling.isoflop import fit_isoflop
from llmtrain.scaling.law import LossLaw
from llmtrain.scaling.load import from_records
from llmtrain.scaling.lr_bracket import fit_bracket, split_rates

LAW = LossLaw(E=0.9, A=60.0, B=90.0, alpha=0.38, beta=0.33)
BUDGETS = (1e11, 3e11, 1e12)
SHAPES = ((16, 1), (24, 1), (32, 1), (32, 2), (48, 2), (64, 2), (64, 4), (96, 3))
CURVATURE = 0.05


def true_rate(record):
    """ln of the best rate over the recipe's: the recipe drifts with N and with the budget."""
    u = np.log(record.params["no_input_embedding"] / 2e4)
    return 0.3 * u + 0.15 * u * np.log(record.flops_budget / BUDGETS[0]) / np.log(10.0)


@pytest.fixture
def records(plant):
    """A function that makes every cell at factor 1, and every second one at the other factors."""
    return lambda factors, **changes: make_records(plant, factors, **changes)


def make_records(plant, factors, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    found = []
    for budget in BUDGETS:
        for i, (width, depth) in enumerate(SHAPES):
            for factor in factors if i % 2 else (1.0,):
                plain = plant(width, depth, budget, law=LAW, noise=0.0, seed=0)
                gap = np.log(factor) - true_rate(plain)
                loss = plain.val_loss + CURVATURE * gap**2 + noise * rng.standard_normal()
                name = f"{plain.run_id}-x{factor:g}"
                found.append(
                    dataclasses.replace(
                        plain,
                        run_id=name,
                        val_loss=float(loss),
                        peak_lr=0.01 * factor,
                        lr_multiplier=factor,
                    )
                )
    return found


def table(found):
    return from_records(found, source="planted", exclusions=())


def test_best_rates_and_the_shift_of_the_exponent_are_the_planted_ones(records, plant):
    runs = table(records((0.2, 1.0, 5.0)))
    base, several = split_rates(runs)
    assert len(base) == len(BUDGETS) * len(SHAPES)
    found = fit_bracket(base, several, n_draws=20, seed=0)
    assert len(found.cells) == 3 * 4
    for cell in found.cells:
        twin = plant(cell.d_model, cell.n_layers, cell.budget, law=LAW, noise=0.0, seed=0)
        assert cell.inside
        assert np.log(cell.best) == pytest.approx(true_rate(twin), abs=1e-6)
        assert cell.excess == pytest.approx(CURVATURE * true_rate(twin) ** 2, abs=1e-9)
    clean = LAW.loss(base.params, base.tokens)
    mistuned = fit_isoflop(base.params, base.tokens, base.loss, base.budget).a
    tuned = fit_isoflop(base.params, base.tokens, clean, base.budget).a
    assert found.a == pytest.approx(mistuned, abs=1e-12)
    assert abs(tuned - mistuned) > 0.01  # the planted recipe does bend the law
    assert found.a_best - found.a == pytest.approx(
        tuned - mistuned, abs=0.1 * abs(tuned - mistuned)
    )


def test_the_interval_covers_the_shift_under_noise(records):
    exact = fit_bracket(*split_rates(table(records((0.25, 1.0, 4.0)))), n_draws=20, seed=0)
    inside = 0
    for seed in range(12):
        base, several = split_rates(table(records((0.25, 1.0, 4.0), noise=0.002, seed=seed)))
        bounds = fit_bracket(base, several, n_draws=40, seed=0).a_shift_interval
        inside += bounds.low <= exact.a_best - exact.a <= bounds.high
    assert inside >= 9  # of 12 at 90 %; fewer have a chance of 3 %


def test_other_rates_enter_no_fit_and_are_listed(analyze_config, records):
    with_rates = analyze(analyze_config(bootstrap=20), table(records((0.5, 1.0, 2.0))))
    without = analyze(analyze_config(bootstrap=20), table(records((1.0,))))
    group, plain = with_rates.groups[0], without.groups[0]
    assert group.estimate("approach2").a == plain.estimate("approach2").a
    assert len(group.runs) == len(plain.runs)
    reasons = [item.reason for item in group.runs.exclusions]
    assert sum("not at the rate of most runs" in reason for reason in reasons) == 3 * 4 * 2
    assert plain.rates is None
    shown = bracket_table(group.rates)
    assert len(shown.rows) == 12
    assert "a moves by" in bracket_line(group.rates)


def test_several_peak_rates_without_a_multiplier_are_warned_about(analyze_config, records):
    same = [dataclasses.replace(r, lr_multiplier=1.0) for r in records((0.5, 1.0, 2.0))]
    group = analyze(analyze_config(bootstrap=20), table(same)).groups[0]
    (finding,) = [item for item in group.findings if item.code == "rates"]
    assert "12 cells were run at several peak rates" in finding.message
    assert len(group.runs) == len(BUDGETS) * len(SHAPES)


def test_too_few_cells_give_rates_but_no_refit(records):
    few = [r for r in records((0.5, 1.0, 2.0)) if r.lr_multiplier == 1.0 or r.d_model == 24]
    base, several = split_rates(table([r for r in few if r.flops_budget < 1e12 or r.d_model != 24]))
    found = fit_bracket(base, several, n_draws=20, seed=0)
    assert len(found.cells) == 2
    assert found.a is None
    assert "2 cells with 3 rates, needs 3" in bracket_line(found)


def test_budgets_are_assigned_where_tokens_were_asked_for(analyze_config, records):
    planned = records((0.2, 1.0, 5.0))
    asked = [dataclasses.replace(record, flops_budget=None) for record in planned]
    found, expected = (
        analyze(analyze_config(bootstrap=20), table(own)).groups[0].rates
        for own in (asked, planned)
    )
    assert found.a_best - found.a == pytest.approx(expected.a_best - expected.a, abs=1e-4)
    assert found.optimum_shift == pytest.approx(expected.optimum_shift, rel=1e-3)
    assert found.note == ""


def test_a_cell_in_no_curve_has_its_rates_and_is_not_in_the_refit(records):
    base, several = split_rates(table(records((0.2, 1.0, 5.0))))
    cell = base.run_id == "w24d1-1e+11-s0-x1"
    base = dataclasses.replace(base, budget=np.where(cell, np.nan, base.budget))
    found = fit_bracket(base, several, n_draws=20, seed=0)
    assert len(found.cells) == 12
    assert found.a_best is not None
    assert "1 cell in no IsoFLOP curve left out" in bracket_line(found)
    assert "–" in [row[0] for row in bracket_table(found).rows]
