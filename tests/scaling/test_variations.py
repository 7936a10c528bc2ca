"""The table of choices made otherwise: every row against a fit made by hand."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmtrain.scaling.analysis import analyze
from llmtrain.scaling.config import AnalyzeConfig
from llmtrain.scaling.cost import fit_cost
from llmtrain.scaling.fit_tables import variation_table
from llmtrain.scaling.isoflop import fit_isoflop
from llmtrain.scaling.law_file import law_document
from llmtrain.scaling.load import load_runs
from llmtrain.scaling.parametric import FitOptions, fit_parametric
from llmtrain.scaling.results import Analysis
from llmtrain.spec.record import RunRecord

PARABOLAS, SURFACE = "Approach 2, parabolas", "Approach 3, Huber on ln L"


@pytest.fixture(scope="module")
def analysis(
    planted_sweep: Callable[..., Path], analyze_config: Callable[..., AnalyzeConfig]
) -> Analysis:
    def counted(record: RunRecord) -> RunRecord:
        six_nd = 6.0 * record.params["no_input_embedding"] * record.n_tokens
        return dataclasses.replace(record, flops={**record.flops, "with_head": six_nd})

    return analyze(analyze_config(bootstrap=50), load_runs(planted_sweep(change=counted)))


def test_rows_are_the_headline_every_count_and_every_loss(analysis: Analysis) -> None:
    (group,) = analysis.groups
    assert [(own.fit, own.change) for own in group.variations] == [
        (PARABOLAS, "as it stands"),
        (PARABOLAS, "N: non_embedding"),
        (PARABOLAS, "N: total"),
        (SURFACE, "as it stands"),
        (SURFACE, "N: non_embedding"),
        (SURFACE, "N: total"),
        (SURFACE, "C: with_head"),
        (SURFACE, "Huber corner 0.0001 of ln L"),
        (SURFACE, "Huber corner 0.01 of ln L"),
        (SURFACE, "squares of ln L"),
        (SURFACE, "Huber corner 0.001 of L"),
    ]


def test_every_row_is_the_fit_made_by_hand(analysis: Analysis) -> None:
    (group,) = analysis.groups
    runs, C = group.runs, group.target_flops
    found = {(own.fit, own.change): (own.a, own.params) for own in group.variations}
    for name in ("non_embedding", "total"):
        N = runs.counts[name]
        line = fit_isoflop(N, runs.tokens, runs.loss, runs.budget)
        expected = (line.a, float(line.params_law.at(C)))
        assert found[PARABOLAS, f"N: {name}"] == pytest.approx(expected, rel=1e-12)
        law = fit_parametric(N, runs.tokens, runs.loss).law
        cost = fit_cost(N, runs.tokens, runs.flops)
        by_hand = (float(cost.exponent(law.alpha, law.beta)), float(cost.n_opt(law, C)))
        assert found[SURFACE, f"N: {name}"] == pytest.approx(by_hand, rel=1e-9)
    for change, options in {
        "as it stands": FitOptions(),
        "Huber corner 0.0001 of ln L": FitOptions(delta=1e-4),
        "Huber corner 0.01 of ln L": FitOptions(delta=1e-2),
        "squares of ln L": FitOptions(delta=np.inf),
        "Huber corner 0.001 of L": FitOptions(link="linear"),
    }.items():
        law = fit_parametric(runs.params, runs.tokens, runs.loss, options).law
        a, n = float(group.cost.exponent(law.alpha, law.beta)), float(group.cost.n_opt(law, C))
        assert found[SURFACE, change] == pytest.approx((a, n), rel=1e-9)


def test_the_target_in_another_count_of_c_is_the_same_training(analysis: Analysis) -> None:
    (group,) = analysis.groups
    runs = group.runs
    law = fit_parametric(runs.params, runs.tokens, runs.loss).law
    own = next(item for item in group.variations if item.change == "C: with_head")
    # with_head is 6ND here, whose optimum has a closed form.
    ratio = runs.flops_ratio[runs.budget == runs.budgets[-1]]
    assert own.a == pytest.approx(law.a, rel=1e-9)
    assert own.params == pytest.approx(
        float(law.n_opt(group.target_flops / float(np.median(ratio)))), rel=1e-9
    )


def test_changes_are_told_from_the_headline_in_the_report_and_law_json(analysis: Analysis) -> None:
    (group,) = analysis.groups
    table = variation_table(group)
    assert table is not None
    assert (table.rows[0][3], table.rows[0][5]) == ("+0.0000", "1.000")
    base, other = group.variations[0], group.variations[2]
    assert other.a is not None
    assert base.a is not None
    assert table.rows[2][3] == f"{other.a - base.a:+.4f}"
    (saved,) = json.loads(json.dumps(law_document(analysis, "")))["groups"]
    assert saved["variations"] == [dataclasses.asdict(own) for own in group.variations]


def test_the_headline_without_outliers_is_varied_without_them(
    planted_sweep: Callable[..., Path], analyze_config: Callable[..., AnalyzeConfig]
) -> None:
    def diverged(record: RunRecord) -> RunRecord:
        spoilt = record.run_id == "w24d1-1e+12-s0"
        return dataclasses.replace(record, val_loss=record.val_loss * (1.3 if spoilt else 1.0))

    runs = load_runs(planted_sweep(change=diverged))
    (group,) = analyze(analyze_config(bootstrap=50), runs).groups
    assert list(group.runs.run_id[group.outliers]) == ["w24d1-1e+12-s0"]
    assert group.main is not None
    assert group.main.name == "approach2_robust"
    found = {(own.fit, own.change): own.a for own in group.variations}
    kept = group.runs.take(~group.outliers)
    for title, table in ((group.main.title, kept), (PARABOLAS, group.runs)):
        line = fit_isoflop(table.counts["total"], table.tokens, table.loss, table.budget)
        assert found[title, "N: total"] == pytest.approx(line.a, rel=1e-12)
