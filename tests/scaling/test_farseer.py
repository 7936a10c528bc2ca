"""Farseer's nine constants as a check of the form: asked for where planted, and only there."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmtrain.scaling.analysis import analyze
from llmtrain.scaling.config import AnalyzeConfig
from llmtrain.scaling.diagnose import check_forms
from llmtrain.scaling.farseer import FarseerFit, check_farseer, fit_farseer
from llmtrain.scaling.law import Array, LossLaw
from llmtrain.scaling.law_file import law_document
from llmtrain.scaling.load import load_runs
from llmtrain.scaling.report_tables import group_tables
from llmtrain.scaling.runs import Runs
from llmtrain.spec.errors import FitRefusedError

LAW = LossLaw(E=1.7, A=400.0, B=900.0, alpha=0.34, beta=0.33)
PLANTED = {
    "s": 6.2, "q": -0.12, "S": 0.117, "B": -13.0, "b": -0.05, "Q": 11.9,
    "A": 0.307, "a": 0.05, "E": -1.909,
}  # fmt: skip


def farseer(N: Array, D: Array) -> Array:
    """The formula, letter by letter."""
    p = PLANTED
    floor = np.exp(p["s"] * N ** p["q"] + p["S"])
    amplitude = np.exp(p["B"] * N ** p["b"] + p["Q"])
    return np.asarray(floor + amplitude * D ** -np.exp(p["A"] * N ** p["a"] + p["E"]))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six budgets of the same nine sizes, on Farseer's surface with noise of 0.1 %."""
    C = np.repeat(np.geomspace(1e18, 3e20, 6), 9)
    N = np.tile(np.geomspace(3e7, 3e9, 9), 6)
    D = C / 6 / N
    loss = farseer(N, D) * np.exp(0.001 * np.random.default_rng(0).standard_normal(54))
    cells = zip(N, D, C, loss, strict=True)
    lines = [",".join(repr(float(value)) for value in row) for row in cells]
    path = tmp_path_factory.mktemp("farseer") / "runs.csv"
    path.write_text("params,tokens,budget,loss\n" + "\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def runs(table: Path) -> Runs:
    return load_runs(table)


def test_a_planted_farseer_surface_comes_back_is_asked_for_and_forecasts_better(
    runs: Runs,
) -> None:
    exact = fit_farseer(dataclasses.replace(runs, loss=farseer(runs.params, runs.tokens)))
    assert exact.constants == pytest.approx(PLANTED, rel=1e-3)
    assert exact.agreeing >= 2
    fit = fit_farseer(runs)
    assert fit.asked_for
    assert fit.objective < fit.plain_objective
    assert fit.gradient < 1e-7
    assert fit.held_out is not None
    nine, five = fit.held_out
    assert nine < 0.5 * five


@pytest.mark.slow
def test_a_plain_surface_does_not_ask_for_it(runs: Runs) -> None:
    rng = np.random.default_rng(5)
    asked = fits = 0
    for _ in range(100):
        noise = np.exp(0.004 * rng.standard_normal(len(runs)))
        found = check_farseer(
            dataclasses.replace(runs, loss=LAW.loss(runs.params, runs.tokens) * noise)
        )
        if isinstance(found, FarseerFit):
            asked, fits = asked + found.asked_for, fits + 1
    assert fits >= 80
    assert asked <= 5


def test_grids_without_common_sizes_are_refused_with_the_cure(runs: Runs) -> None:
    own = dataclasses.replace(runs, params=runs.params * np.linspace(1.0, 1.1, len(runs)))
    with pytest.raises(FitRefusedError, match="0 sizes have 4 token counts or more, nine con"):
        fit_farseer(own)
    (finding,) = check_forms(None, check_farseer(own))
    assert finding.level == "refusal"
    assert "train the same sizes at more budgets" in finding.message


def test_it_is_a_row_a_warning_and_never_the_headline(
    table: Path, analyze_config: Callable[..., AnalyzeConfig]
) -> None:
    analysis = analyze(analyze_config(bootstrap=20, interaction=True), load_runs(table))
    (group,) = analysis.groups
    message = next(f for f in group.findings if f.code == "farseer")
    assert message.level == "warning"
    assert "ask for Farseer's nine constants" in message.message
    assert group.main is not None
    assert "Farseer" not in group.main.title
    assert any(own.title == "Does the loss need Farseer's form?" for own in group_tables(group))
    (saved,) = json.loads(json.dumps(law_document(analysis, "")))["groups"]
    assert isinstance(group.farseer, FarseerFit)
    assert saved["farseer"]["status"] == "accepted"
    assert saved["farseer"]["aic_gain"] == pytest.approx(group.farseer.aic_gain)
