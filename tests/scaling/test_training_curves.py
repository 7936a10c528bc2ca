"""Approach 1 from training curves, against families whose envelope is known in closed form."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmtrain.scaling.analysis import analyze
from llmtrain.scaling.config import AnalyzeConfig
from llmtrain.scaling.envelope import lower_hull
from llmtrain.scaling.law import LossLaw
from llmtrain.scaling.load import load_runs
from llmtrain.scaling.training_curves import load_curves, smooth
from llmtrain.spec.record import RunRecord

LAW = LossLaw(E=0.9, A=60.0, B=90.0, alpha=0.38, beta=0.33)


def fresh(record: RunRecord) -> RunRecord:
    """The record with as many tokens at hand as it asks for."""
    return dataclasses.replace(record, epochs=0.5)


def write_curves(root: Path, *, noise: float = 0.0) -> None:
    """Give every run of a sweep the curve of its law: as if the schedule never mattered."""
    rng = np.random.default_rng(2)
    for folder in root.iterdir():
        record = json.loads((folder / "record.json").read_text())
        N, D, C = (
            float(record["params"]["no_input_embedding"]),
            float(record["n_tokens"]),
            record["flops"]["full_attention"],
        )
        tokens = np.linspace(0.01, 1.0, 100) * D
        loss = LAW.loss(np.full(100, N), tokens) * np.exp(noise * rng.standard_normal(100))
        rows = [
            {"step": i, "tokens": d, "flops": C * d / D, "train/loss": value}
            for i, (d, value) in enumerate(zip(tokens, loss, strict=True))
        ]
        rows.append({"step": 100, "tokens": D, "flops": C, "val/loss": 9.9})
        text = "\n".join(json.dumps(row) for row in rows)
        (folder / "metrics.jsonl").write_text(text + "\n", encoding="utf-8")


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_curves_of_a_known_law_give_its_exponent_back(
    planted_sweep: Callable[..., Path], analyze_config: Callable[..., AnalyzeConfig], noise: float
) -> None:
    root = planted_sweep((3e10, 1e12, 3e13), law=LAW, sd=0.0, change=fresh)
    runs = load_runs(root)
    write_curves(root, noise=noise)
    training = load_curves(root, runs)
    assert training is not None
    group = analyze(analyze_config(), runs, training).groups[0]
    truth = group.cost.exponent(LAW.alpha, LAW.beta)
    for name, within in (("approach1_curves", 0.08), ("approach1_smoothed", 0.05)):
        found = group.estimate(name)
        assert found.status == "accepted"
        # Nine sizes over three decades of compute: the optimum moves in steps of two,
        # and the hull touches only some of them.
        assert found.a == pytest.approx(float(truth), abs=within)
        assert found.a_interval is not None
        assert found.a_interval.low < found.a < found.a_interval.high
    # Points of cosine runs before their end are named, and no surface has seen them.
    message = next(f.message for f in group.findings if f.code == "unannealed")
    assert message.startswith(f"{27 * 99} of {27 * 100} points")
    assert group.estimate("approach3").n_runs == 27


def test_rows_with_one_run_id_are_a_curve_and_their_last_enters_the_surface(
    tmp_path: Path, analyze_config: Callable[..., AnalyzeConfig]
) -> None:
    lines = ["run_id,params,tokens,loss"]
    for k, N in enumerate(np.geomspace(1e6, 1e9, 9)):
        for D in np.geomspace(5 * N, 80 * N, 40):
            lines.append(f"r{k},{N},{D},{LAW.loss(N, D)}")
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    group = analyze(analyze_config(), load_runs(path)).groups[0]
    found = group.estimate("approach1_smoothed")
    assert found.a == pytest.approx(LAW.a, abs=0.06)
    assert found.n_runs == 9
    assert len(group.runs) == 9


def test_smoothing_keeps_power_laws_and_averages_noise() -> None:
    x = np.log(np.linspace(1.0, 100.0, 200))
    assert smooth(x, 3.0 - 0.3 * x) == pytest.approx(3.0 - 0.3 * x, abs=1e-12)
    noise = np.random.default_rng(0).standard_normal(20_00)
    rough = smooth(np.linspace(0.0, 1.0, 2000), noise)
    # Gaussian weights of sd 2.5 points average 2 sqrt(pi) 2.5 = 8.9 of them.
    assert float(rough[20:-20].std()) == pytest.approx(1 / np.sqrt(8.86), rel=0.1)
    assert smooth(x[:20], noise[:20]) == pytest.approx(noise[:20])


def test_the_hull_is_the_brute_force_hull_of_random_points() -> None:
    rng = np.random.default_rng(4)
    for _ in range(50):
        x, y = rng.random(30), rng.random(30)
        found = set(lower_hull(x, y))
        lowest = int(y.argmin())
        slopes = np.linspace(0.0, 200.0, 20001)
        touched = {int((y + slope * x).argmin()) for slope in slopes} | {int(x.argmin())}
        assert {lowest, int(x.argmin())} <= found
        assert touched <= found
