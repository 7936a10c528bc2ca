"""Back-tests of every report: the largest model, hull points, small budgets, other starts."""

import dataclasses
import json
from collections.abc import Callable

import numpy as np
import pytest

from llmtrain.scaling.analysis import analyze
from llmtrain.scaling.config import AnalyzeConfig
from llmtrain.scaling.envelope import fit_envelope
from llmtrain.scaling.held_model import hold_out_model
from llmtrain.scaling.influence import leave_out_hull, leave_out_isoflop
from llmtrain.scaling.isoflop import fit_isoflop
from llmtrain.scaling.law import LossLaw
from llmtrain.scaling.law_file import law_document
from llmtrain.scaling.load import load_runs
from llmtrain.scaling.parametric import FitOptions, fit_parametric
from llmtrain.scaling.report_tables import group_tables
from llmtrain.scaling.results import GroupAnalysis
from llmtrain.scaling.runs import Runs
from llmtrain.scaling.sensitivity import check_sensitivity

Config = Callable[..., AnalyzeConfig]
LAW = LossLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Five budgets of the same nine sizes, on the law exactly."""
    lines = ["params,tokens,flops,loss"]
    for C in np.geomspace(1e18, 1e20, 5):
        for N in np.geomspace(3e7, 3e9, 9):
            D = C / 6 / N
            lines.append(f"{N},{D},{C},{LAW.loss(float(N), float(D))}")
    path = tmp_path_factory.mktemp("runs") / "runs.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    table = load_runs(path)
    return dataclasses.replace(table, budget=table.flops)


@pytest.fixture(scope="module")
def group(runs: Runs, analyze_config: Config) -> GroupAnalysis:
    return analyze(analyze_config(bootstrap=50), runs).groups[0]


def test_the_largest_model_is_forecast_without_its_own_runs(runs: Runs) -> None:
    held = hold_out_model(runs, FitOptions())
    assert held is not None
    assert held.params == pytest.approx(3e9)
    assert (held.n_runs, held.n_models) == (5, 8)
    best = held.best
    assert best is not None
    assert best.mean_absolute == pytest.approx(0.0, abs=1e-5)
    largest = runs.params == runs.params.max()
    spoiled = dataclasses.replace(runs, loss=np.where(largest, 1.25 * runs.loss, runs.loss))
    other = hold_out_model(spoiled, FitOptions())
    assert other is not None
    assert other.best is not None
    # The forecast stays, so that its error is that of the truth: 1 / 1.25 - 1.
    assert other.best.mean == pytest.approx(-0.2, abs=1e-5)
    assert hold_out_model(runs.take(runs.params < 1e8), FitOptions()) is None


def test_the_hull_is_refitted_without_each_of_its_runs(runs: Runs) -> None:
    columns = (runs.params, runs.tokens, runs.flops, runs.loss)
    fit = fit_envelope(*columns)
    found = leave_out_hull(fit, runs.run_id, columns)
    assert found is not None
    refits = {}
    for row in fit.rows:
        keep = np.arange(len(runs)) != row
        refits[str(runs.run_id[row])] = fit_envelope(*(column[keep] for column in columns)).a
    assert found.n_units == len(fit.rows)
    assert found.range_of_a.low == min(refits.values())
    assert found.range_of_a.high == max(refits.values())
    assert found.shift == refits[found.worst] - fit.a


def test_approach_2_is_refitted_without_each_model_and_budget(runs: Runs) -> None:
    fit = fit_isoflop(runs.params, runs.tokens, runs.loss, runs.budget)
    found = {item.kind: item for item in leave_out_isoflop(fit, runs)}
    assert (found["model"].n_units, found["budget"].n_units) == (9, 5)
    rest = runs.take(runs.budget < 1e20)
    without = fit_isoflop(rest.params, rest.tokens, rest.loss, rest.budget).a
    assert found["budget"].range_of_a.low <= without <= found["budget"].range_of_a.high


def test_searches_from_published_constants_and_at_random_end_at_the_same_law(runs: Runs) -> None:
    columns = (runs.params, runs.tokens, runs.loss)
    noisy = runs.loss * np.exp(0.003 * np.random.default_rng(0).standard_normal(len(runs)))
    fit = fit_parametric(*columns[:2], noisy)
    found = check_sensitivity(fit, dataclasses.replace(runs, loss=noisy), 0)
    assert found.better is None
    starts = {own.law: own for own in found.published}
    assert starts["besiroglu2024"].agrees
    assert starts["hoffmann_a3_tex"].agrees
    assert starts["hoffmann_a3_tex"].objective > fit.certificate.objective
    assert found.random_agreeing >= 10


def test_a_search_that_ends_lower_is_said(runs: Runs) -> None:
    fit = fit_parametric(runs.params, runs.tokens, runs.loss * np.linspace(0.99, 1.01, len(runs)))
    spoiled = dataclasses.replace(
        fit, certificate=dataclasses.replace(fit.certificate, objective=1.0)
    )
    found = check_sensitivity(spoiled, runs, 0)
    assert found.better is not None
    assert found.better < 1.0


def test_every_back_test_stands_in_the_report_and_in_law_json(
    group: GroupAnalysis, runs: Runs, analyze_config: Config
) -> None:
    titles = [table.title for table in group_tables(group)]
    for words in (
        "Forecast of the budget 1e20 from the 4 smaller ones",
        "Forecast of the largest model, N = 3.00B, from 8 smaller sizes",
        "Without the smallest budgets",
        "Left out in turn: the exponent a",
        "Other starts for Approach 3, Huber on ln L",
    ):
        assert words in titles
    kinds = {(item.method, item.kind) for item in group.left_out}
    assert {
        ("approach3", "run"), ("approach3", "model"), ("approach3", "budget"),
        ("approach2", "model"), ("approach2", "budget"), ("approach1_hull", "hull point"),
    } <= kinds  # fmt: skip
    analysis = analyze(analyze_config(bootstrap=50), runs)
    (own,) = json.loads(json.dumps(law_document(analysis, "")))["groups"]
    assert own["forecast"]["budget"] == 1e20
    assert own["forecast_model"]["n_runs"] == 5
    assert own["projected"]["flops"] == 1e21
    assert own["without_small_budgets"][0]["loss_at_target"] == pytest.approx(
        float(LAW.loss_opt(1e21)), rel=1e-6
    )
    assert own["sensitivity"]["random_starts"] == 20
