"""Two sweeps: a planted compute multiplier comes back, and unlike losses are not compared."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmtrain.scaling.analysis import analyze, compare_with
from llmtrain.scaling.bootstrap import bootstrap_parametric, draw_weights
from llmtrain.scaling.compare import Side, comparison_notes, compute_multiplier
from llmtrain.scaling.config import AnalyzeConfig
from llmtrain.scaling.cost import SIX_N_D
from llmtrain.scaling.law import LossLaw
from llmtrain.scaling.law_file import law_document, read_side
from llmtrain.scaling.load import load_runs
from llmtrain.scaling.parametric import FitOptions, fit_parametric
from llmtrain.scaling.texts import Texts, loss_scale
from llmtrain.spec.errors import FitRefusedError
from llmtrain.spec.record import RunRecord

ROOT = Path(__file__).resolve().parents[2]
CHIN = LossLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
PLANTED = LossLaw(E=0.9, A=60.0, B=90.0, alpha=0.38, beta=0.33)
Sweep = Callable[..., Path]
Config = Callable[..., AnalyzeConfig]


def twice_as_good(law: LossLaw) -> LossLaw:
    """N and D worth 1.5 and 4/3 times as much: 6ND for equal loss falls by 2, at every budget."""
    return dataclasses.replace(law, A=law.A * 1.5**-law.alpha, B=law.B * (4 / 3) ** -law.beta)


def noisy_side(law: LossLaw, seed: int, options: FitOptions) -> Side:
    sizes, budgets = np.geomspace(1e7, 1e9, 10), np.geomspace(1e17, 1e20, 6)
    N, C = (grid.ravel() for grid in np.meshgrid(sizes, budgets))
    D = C / (6 * N)
    loss = law.loss(N, D) * np.exp(0.004 * np.random.default_rng(seed).standard_normal(len(N)))
    fit = fit_parametric(N, D, loss, options)
    draws = bootstrap_parametric(fit, N, D, loss, draw_weights(np.arange(len(N)), 100, seed))
    return Side(name="s", law=fit.law, draws=draws, cost=SIX_N_D, params="total", flops="6ND")


@pytest.mark.slow
def test_a_multiplier_of_two_lies_in_its_interval_as_often_as_it_says() -> None:
    options = FitOptions(delta=np.inf)
    held, values = [], []
    for seed in range(200):
        base = noisy_side(CHIN, 2 * seed, options)
        other = noisy_side(twice_as_good(CHIN), 2 * seed + 1, options)
        (found,) = compute_multiplier(base, other, np.array([1e20]))
        assert found.interval is not None
        held.append(found.interval.low <= 2.0 <= found.interval.high)
        values.append(found.value)
    assert 0.85 <= np.mean(held) <= 0.95
    assert np.median(values) == pytest.approx(2.0, rel=0.02)


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def write_csv(path: Path, law: LossLaw, seed: int, **declared: str) -> Path:
    rng = np.random.default_rng(seed)
    names = ["params", "tokens", "loss", *declared]
    lines = [",".join(names)]
    for C in np.geomspace(1e17, 1e20, 5):
        for n in np.geomspace(1e7, 1e9, 7):
            d = C / (6 * n)
            loss = law.loss(n, d) * np.exp(0.002 * rng.standard_normal())
            lines.append(
                ",".join([str(float(n)), str(float(d)), str(float(loss)), *declared.values()])
            )
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.slow
def test_analyze_recovers_a_planted_multiplier_from_two_tables(tmp_path: Path) -> None:
    declared = {"data": "c4", "tokenizer": "gpt2", "eval_data": "c4-val"}
    a = write_csv(tmp_path / "a.csv", CHIN, 1, **declared)
    b = write_csv(tmp_path / "b.csv", twice_as_good(CHIN), 2, **declared)
    base = tmp_path / "A"
    done = script("analyze.py", f"runs={a}", f"out={base}", "bootstrap=100")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "B"
    against = f"against={base / 'law.json'}"
    done = script("analyze.py", f"runs={b}", f"out={out}", "bootstrap=100", against)
    assert done.returncode == 0, done.stderr
    assert "Compute multiplier over" in done.stdout
    found = json.loads((out / "law.json").read_text())["multipliers"][:-1]
    for item in found:  # how often intervals hold the truth is the coverage test's question
        half = (item["interval"]["high"] - item["interval"]["low"]) / 2
        assert abs(item["value"] - 2.0) < 2 * half
        assert item["value"] == pytest.approx(2.0, rel=0.2)
    assert (out / "figures" / "multiplier.svg").is_file()
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "Compute multiplier over" in text
    assert "multiplier.png" in text
    other = write_csv(tmp_path / "c.csv", CHIN, 3, **(declared | {"data": "pile"}))
    done = script("analyze.py", f"runs={other}", f"out={tmp_path / 'C'}", "bootstrap=50", against)
    assert done.returncode == 7
    assert "data differs, c4 against pile" in done.stderr
    assert done.stderr.count("\n") == 1


def test_two_folders_are_compared_and_another_corpus_is_refused(
    planted_sweep: Sweep, analyze_config: Config, tmp_path: Path
) -> None:
    config = analyze_config(bootstrap=60)
    path = tmp_path / "law.json"
    document = law_document(analyze(config, load_runs(planted_sweep())), "")
    path.write_text(json.dumps(document), encoding="utf-8")
    base = read_side(path)
    better = analyze(config, load_runs(planted_sweep(law=twice_as_good(PLANTED))))
    compared = compare_with(better, base)
    assert compared.multiplier_notes == ()
    # At recorded FLOPs C = 6 N D f N^s, N worth 1.5 times as much counts 1.5^(1+s).
    expected = 1.5 ** (1.0 + base.cost.slope) * 4 / 3
    for item in compared.multipliers[:-1]:
        assert item.interval is not None
        assert item.interval.low < expected < item.interval.high

    def elsewhere(record: RunRecord) -> RunRecord:
        return dataclasses.replace(record, data_id="e" * 64)

    other = analyze(config, load_runs(planted_sweep(change=elsewhere)))
    with pytest.raises(FitRefusedError, match="corpus differs"):
        compare_with(other, base)


def test_other_tokenizers_are_compared_in_bits_per_byte(
    planted_sweep: Sweep, analyze_config: Config, tmp_path: Path
) -> None:
    config = analyze_config(bootstrap=60)
    path = tmp_path / "law.json"
    first = analyze(config, load_runs(planted_sweep()))
    path.write_text(json.dumps(law_document(first, "")), encoding="utf-8")

    def coarse(record: RunRecord) -> RunRecord:
        # Tokens of three bytes: thrice the nats per token, the same bits per byte.
        return dataclasses.replace(
            record, tokenizer_id="u" * 64, data_id="e" * 64, val_loss=3.0 * record.val_loss
        )

    same = analyze(config, load_runs(planted_sweep(change=coarse)))
    compared = compare_with(same, read_side(path))
    assert "bits per byte" in compared.multiplier_notes[0]
    for item in compared.multipliers:
        assert item.value == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(
    ("mine", "theirs", "words"),
    [
        (Texts(data="c4"), Texts(data="pile"), "data differs"),
        (Texts(evaluation="a"), Texts(evaluation="b"), "evaluation differs"),
        (Texts(tokenizer="a"), Texts(tokenizer="b"), "tokenizer differs"),
        (Texts(corpus="a"), Texts(corpus="b"), "corpus differs"),
    ],
)
def test_unlike_losses_are_refused(mine: Texts, theirs: Texts, words: str) -> None:
    with pytest.raises(FitRefusedError, match=words):
        loss_scale(mine, theirs)


def test_what_is_not_declared_is_said_to_be_taken_for_granted() -> None:
    scale, notes = loss_scale(Texts(data="c4"), Texts())
    assert scale == 1.0
    assert "taken to be the same" in notes[0]
    assert "tokenizer" in notes[0]


def test_counts_that_neither_declares_are_said_to_be_taken_for_granted() -> None:
    side = noisy_side(CHIN, 0, FitOptions(delta=np.inf))
    assert not any("parameters" in note for note in comparison_notes(side, side))
    silent = dataclasses.replace(side, params="undeclared", flops="undeclared")
    assert "parameters and FLOPs" in comparison_notes(silent, silent)[-1]


def test_imputed_flops_keep_the_parameters_they_were_counted_with(planted_sweep: Sweep) -> None:
    runs = load_runs(planted_sweep())
    given = dataclasses.replace(runs.conventions, flops="6ND", flops_imputed=True)
    runs = dataclasses.replace(runs, conventions=given)
    assert runs.counted_as("total").conventions.flops == "6ND of the given parameters"
    assert runs.counted_as(given.params).conventions.flops == "6ND"
