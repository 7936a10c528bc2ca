"""The certificate: its reference on public runs, and what happens to a fit without one."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmtrain.scaling.analysis import analyze
from llmtrain.scaling.config import AnalyzeConfig
from llmtrain.scaling.law import LossLaw
from llmtrain.scaling.law_file import law_document
from llmtrain.scaling.load import load_runs
from llmtrain.scaling.newton import minimise
from llmtrain.scaling.parametric import FitOptions, ParametricFit, fit_parametric, make_objective
from llmtrain.scaling.report_tables import group_tables

LAW = LossLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)


def test_an_optimum_that_no_second_start_finds_is_refused_in_the_report(
    tmp_path: Path, analyze_config: Callable[..., AnalyzeConfig]
) -> None:
    C = np.repeat(np.geomspace(1e18, 1e20, 5), 9)
    N = np.asarray(LAW.n_opt(C)) * np.tile(np.geomspace(0.25, 4.0, 9), 5)
    D = C / 6 / N
    loss = LAW.loss(N, D) * np.exp(0.01 * np.random.default_rng(0).standard_normal(45))
    cells = zip(N, D, C, loss, strict=True)
    rows = [",".join(repr(float(value)) for value in row) for row in cells]
    path = tmp_path / "runs.csv"
    path.write_text("params,tokens,flops,loss\n" + "\n".join(rows), encoding="utf-8")
    # A corner far below the noise makes the objective one of absolute values: kinks everywhere.
    analysis = analyze(analyze_config(bootstrap=20, delta=1e-5), load_runs(path))
    fit = analysis.groups[0].estimate("approach3").fit
    assert isinstance(fit, ParametricFit)
    assert fit.certificate.agreeing == 1
    (group,) = json.loads(json.dumps(law_document(analysis, "")))["groups"]
    saved = {item["name"]: item for item in group["fits"]}
    assert saved["approach3"]["status"] == "refused"
    assert saved["approach3"]["reason"].startswith("not certified: gradient")
    assert saved["projection"]["status"] == "accepted"
    row = next(
        row
        for row in group_tables(analysis.groups[0])[0].rows
        if row[0] == "Approach 3, Huber on ln L"
    )
    assert row[-1].endswith("1 of 202 starts agree (at least 2)")
    assert any(f.level == "refusal" and f.code == "approach3" for f in analysis.groups[0].findings)


def test_the_reference_certificate_of_epochs_240_rows(
    public_table: Callable[[str], Path],
) -> None:
    """675 raw starts, of which BFGS lets 537 agree, with no other optimum below .00716."""
    runs = load_runs(public_table("epoch_chinchilla_240.csv"))
    columns = (runs.params, runs.tokens, runs.loss)
    fit = fit_parametric(*columns)
    assert fit.certificate.objective == pytest.approx(0.0010182740, abs=1e-8)
    assert fit.certificate.gradient < 5e-11
    axes = ((0.0, 5.0, 10.0, 15.0, 20.0),) * 2 + ((-0.5, 0.0, 0.5),) + ((0.2, 0.5, 1.0),) * 2
    starts = np.stack([axis.ravel() for axis in np.meshgrid(*map(np.array, axes))], axis=1)
    starts[:, :2] -= starts[:, 3:] * np.array(fit.centre)
    objective = make_objective(*columns, FitOptions(), fit.centre)
    minima = minimise(objective, starts, np.ones((1, len(runs))), max_steps=1000)
    best = fit.certificate.objective
    assert len(starts) == 675
    assert int((minima.value <= best * (1 + 1e-6)).sum()) >= 537
    distinct = minima.value[(minima.value > best * (1 + 1e-6)) & (minima.gradient < 1e-8)]
    assert distinct.min() > 0.0071
