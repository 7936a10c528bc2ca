"""F5: order, units, duplicates, names, an added constant and N<->D do not move a law."""

import csv
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmtrain.scaling.analysis import analyze
from llmtrain.scaling.config import AnalyzeConfig
from llmtrain.scaling.isoflop import IsoflopFit, fit_isoflop
from llmtrain.scaling.law import Array, LossLaw
from llmtrain.scaling.load import load_runs
from llmtrain.scaling.parametric import ParametricFit, fit_parametric, fit_projection

BUDGETS = np.geomspace(1e17, 1e20, 4)
SIZES = 7
FITTED = ("approach2", "approach3", "projection", "log_squares")
"""Estimates that are fits to the runs; the others are read off redrawn noise."""


def drawn(rng: np.random.Generator, noise: float) -> tuple[Array, Array, Array, Array]:
    """Return N, D, loss, C of a grid of noisy runs around the optima of a drawn law."""
    law = LossLaw(
        E=rng.uniform(0.8, 2.5),
        A=10 ** rng.uniform(1.5, 3.5),
        B=10 ** rng.uniform(1.5, 3.5),
        alpha=rng.uniform(0.25, 0.5),
        beta=rng.uniform(0.25, 0.5),
    )
    C = np.repeat(BUDGETS, SIZES)
    N = np.asarray(law.n_opt(C)) * np.tile(np.geomspace(1 / 6, 6, SIZES), len(BUDGETS))
    D = C / 6 / N
    loss = np.asarray(law.loss(N, D)) * np.exp(noise * rng.standard_normal(len(N)))
    return N, D, loss, C


def lines(fit: IsoflopFit) -> list[float]:
    return [fit.a, fit.b, float(fit.params_law.at(1e18)), float(fit.tokens_law.at(1e18))]


def test_approach_2_of_300_grids() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        N, D, loss, C = drawn(rng, 0.0005)
        plain = fit_isoflop(N, D, loss, C)
        order = rng.permutation(len(N))
        twice = [np.tile(values, 2) for values in (N, D, loss, C)]
        same = (
            fit_isoflop(N[order], D[order], loss[order], C[order]),
            fit_isoflop(*twice),
            fit_isoflop(N, D, loss + 0.7, C),
            fit_isoflop(N, D, loss / np.log(2), C),
        )
        for other in same:
            assert lines(other) == pytest.approx(lines(plain), rel=1e-9)
        a, b, params, tokens = lines(plain)
        scaled = fit_isoflop(N * 1e4, D * 1e5, loss, C * 1e9)
        at = [float(line.at(1e27)) for line in (scaled.params_law, scaled.tokens_law)]
        assert [scaled.a, scaled.b, *at] == pytest.approx(
            [a, b, params * 1e4, tokens * 1e5], rel=1e-9
        )
        swapped = fit_isoflop(D, N, loss, C)
        assert lines(swapped) == pytest.approx([b, a, tokens, params], rel=1e-9)


def shape_of(fit: ParametricFit) -> Array:
    """The constants that units leave alone."""
    return np.array([fit.law.E, fit.law.alpha, fit.law.beta])


@pytest.mark.parametrize("fitter", [fit_parametric, fit_projection])
@pytest.mark.parametrize("count", [1, pytest.param(15, marks=pytest.mark.slow)])
def test_surfaces_of_drawn_grids(fitter: Callable[..., ParametricFit], count: int) -> None:
    rng = np.random.default_rng(1)
    for _ in range(count):
        N, D, loss, _ = drawn(rng, 0.003)
        expected = shape_of(fitter(N, D, loss))
        order, times = rng.permutation(len(N)), rng.integers(1, 4, len(N))
        repeated = fitter(*(np.repeat(values, times) for values in (N, D, loss)))
        weighted = fitter(N, D, loss, weights=times.astype(float))
        assert shape_of(repeated) == pytest.approx(shape_of(weighted), rel=1e-7)
        same = [fitter(N[order], D[order], loss[order]), fitter(N * 1e4, D * 1e5, loss)]
        for other in map(shape_of, same):
            assert other == pytest.approx(expected, rel=1e-7)
        swapped = shape_of(fitter(D, N, loss))[[0, 2, 1]]
        assert swapped == pytest.approx(expected, rel=1e-7)
        if fitter is fit_projection:  # in ln L a constant is no constant
            raised = shape_of(fitter(N, D, loss + 0.5))
            assert raised - [0.5, 0, 0] == pytest.approx(expected, rel=1e-7)


def test_order_of_rows_and_names_leave_an_analysis_alone(
    analyze_config: Callable[..., AnalyzeConfig], root: Path, tmp_path: Path
) -> None:
    table = root / "docs/results/demo/runs.csv"
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    random.Random(3).shuffle(rows)
    names = {"group": "another", "data": "text", "recipe": "r", "code_id": "f" * 12}
    other = tmp_path / "runs.csv"
    with other.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | names | {"run_id": f"run{i}"} for i, row in enumerate(rows))
    found = []
    for path in (table, other):
        analysis = analyze(analyze_config(runs=str(path)), load_runs(path))
        found.append([analysis.groups[0].estimate(name) for name in FITTED])
    for before, after in zip(*found, strict=True):
        assert after.status == before.status == "accepted"
        assert [after.a, after.b] == pytest.approx([before.a, before.b], rel=1e-7)
