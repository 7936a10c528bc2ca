"""Answers of scripts/predict.py, by hand or by brute force."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmtrain.scaling.analysis import analyze
from llmtrain.scaling.any_law import AnyLaw, find_law
from llmtrain.scaling.bootstrap import LawDraws, interval
from llmtrain.scaling.config import AnalyzeConfig, PredictConfig
from llmtrain.scaling.cost import CostModel
from llmtrain.scaling.demand import RepeatedData, best_for_flops, best_for_inference
from llmtrain.scaling.law import LossLaw
from llmtrain.scaling.law_file import law_document
from llmtrain.scaling.load import load_runs
from llmtrain.scaling.predict import Prediction, predict
from llmtrain.scaling.published import published_law

NOTHING = PredictConfig(
    law="besiroglu2024",
    fit=None,
    group=None,
    flops=None,
    params=None,
    tokens=None,
    gpu_hours=None,
    mfu=0.4,
    peak_tflops=989.0,
    loss=None,
    inference_tokens=None,
    unique_tokens=None,
    table="models",
)
BESIROGLU = published_law("besiroglu").loss_law
assert BESIROGLU is not None


def ask(**changes: float | str) -> list[Prediction]:
    question = dataclasses.replace(NOTHING, **changes)  # type: ignore[arg-type]
    return predict(question, find_law(question))


@pytest.fixture(scope="module")
def law_json(
    planted_sweep: Callable[..., Path],
    analyze_config: Callable[..., AnalyzeConfig],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A law.json of a planted sweep, FLOPs with attention, noise .4 %, 200 draws."""
    analysis = analyze(analyze_config(), load_runs(planted_sweep(sd=0.004)))
    path = tmp_path_factory.mktemp("law") / "law.json"
    path.write_text(json.dumps(law_document(analysis, "")), encoding="utf-8")
    return path


def fitted(path: Path) -> AnyLaw:
    return find_law(dataclasses.replace(NOTHING, law=str(path)))


def test_the_price_of_gopher_is_told_in_flops_and_in_loss() -> None:
    own, best = ask(params=280e9, tokens=300e9)
    assert own.loss is not None
    assert best.loss is not None
    needed = 6 * (BESIROGLU.kappa / (own.loss - BESIROGLU.E)) ** (1 / BESIROGLU.gamma)
    assert own.wasted == pytest.approx(1 - needed / 5.04e23, rel=1e-9)
    assert best.loss == pytest.approx(float(BESIROGLU.loss_opt(5.04e23)), rel=1e-12)
    assert f"{needed:.4g} FLOPs would reach this loss" in own.notes[0]
    assert f"lower by {own.loss - best.loss:.4f}" in own.notes[0]


def test_an_hour_of_gpu_is_priced_by_hand() -> None:
    (found,) = ask(gpu_hours=1000.0, mfu=0.5, peak_tflops=312.0)
    assert found.flops == pytest.approx(1000 * 3600 * 312e12 * 0.5, rel=1e-12)
    assert found.flops_interval is None


def test_far_beyond_its_runs_a_law_says_extrapolation() -> None:
    assert any("extrapolation" in note for note in ask(flops=5.88e23, law="porian")[0].notes)
    assert not any("extrapolation" in note for note in ask(flops=1e21, law="porian")[0].notes)


def test_every_draw_answers_the_question_by_itself(law_json: Path) -> None:
    law = fitted(law_json)
    assert isinstance(law.draws, LawDraws)
    (at_budget,) = ask(law=str(law_json), flops=1e13)
    by_hand = interval(law.draws.n_opt(1e13, law.cost))
    assert at_budget.params_interval is not None
    assert by_hand is not None
    assert at_budget.params_interval.low == pytest.approx(by_hand.low, rel=1e-9)
    assert at_budget.params_interval.high == pytest.approx(by_hand.high, rel=1e-9)
    by_hand = interval(law.cost.tokens(1e13, law.draws.n_opt(1e13, law.cost)))
    assert at_budget.tokens_interval is not None
    assert by_hand is not None
    assert at_budget.tokens_interval.high == pytest.approx(by_hand.high, rel=1e-9)
    assert at_budget.flops_interval is None
    (for_loss,) = ask(law=str(law_json), loss=at_budget.loss or 0.0)
    assert for_loss.flops == pytest.approx(1e13, rel=1e-6)
    assert for_loss.loss_interval is None
    bounds = for_loss.flops_interval
    assert bounds is not None
    # The loss at the interval's ends, over the draws, straddles the target by 5 % on either side.
    ends = [
        np.mean([float(law.cost.loss_opt(drawn, C)) < (at_budget.loss or 0.0)
                 for drawn in law.draws.laws()])
        for C in (bounds.low, bounds.high)
    ]  # fmt: skip
    assert ends == pytest.approx([0.05, 0.95], abs=0.01)


def test_the_waste_of_a_pair_has_an_interval_that_holds_it(law_json: Path) -> None:
    own, _ = ask(law=str(law_json), params=3e5, tokens=2e7)
    assert own.wasted is not None
    assert own.wasted_interval is not None
    assert own.wasted_interval.low < own.wasted < own.wasted_interval.high


def test_demands_of_a_fitted_law_are_met_at_its_own_cost_with_intervals(law_json: Path) -> None:
    law = fitted(law_json)
    assert not law.cost.is_exact
    plain, repeated, served = ask(
        law=str(law_json), flops=1e13, unique_tokens=2e6, inference_tokens=1e9
    )
    for found in (repeated, served):
        assert found.params_interval is not None
        assert found.params_interval.low < found.params < found.params_interval.high
        spent = float(law.cost.per_token(found.params)) * found.tokens
        assert spent == pytest.approx(found.flops, rel=1e-9)
    assert repeated.flops == plain.flops
    assert served.flops_interval is not None
    assert served.params < repeated.params < plain.params


@pytest.mark.parametrize("slope", [0.0, -0.08])
def test_demand_optima_are_what_a_brute_search_finds(slope: float) -> None:
    law = LossLaw(E=1.7, A=300.0, B=900.0, alpha=0.31, beta=0.41)
    cost = CostModel(factor=1.3, slope=slope, worst=0.0)
    limited = RepeatedData(law=law, unique=1e9, cost=cost)
    sizes = np.geomspace(1e8, 1e13, 20_001)
    tokens = cost.tokens(1e20, sizes)
    losses = [limited.loss(n, d) for n, d in zip(sizes, tokens, strict=True)]
    best = best_for_flops(law, 1e20, 1e9, cost)
    assert best.loss == pytest.approx(min(losses), rel=1e-9)
    assert best.params == pytest.approx(sizes[int(np.argmin(losses))], rel=2e-3)
    for served in (0.0, 1e12):
        found = best_for_inference(law, best.loss, served, 1e9, cost)
        needed = np.array([limited.tokens_for(n, best.loss) for n in sizes])
        total = cost.per_token(sizes) * (needed + served / 3.0)
        assert found.total_flops == pytest.approx(total.min(), rel=1e-6)
        assert found.params == pytest.approx(sizes[int(total.argmin())], rel=5e-3)


@pytest.mark.parametrize("N", [2e7, 3e8, 5e9])
def test_tokens_for_a_loss_invert_the_loss_under_repetition(N: float) -> None:
    law = published_law("muennighoff_c4").loss_law
    assert law is not None
    limited = RepeatedData(law=law, unique=1e9)
    for tokens in (2e8, 3e9, 2e10):
        loss = limited.loss(N, tokens)
        assert limited.tokens_for(N, loss) == pytest.approx(tokens, rel=1e-8)
    assert limited.tokens_for(N, limited.loss(N, 1e13) - 1e-6) == float("inf")


def test_an_answer_by_another_fit_than_the_verdicts_says_so(law_json: Path) -> None:
    (by_surface,) = ask(law=str(law_json), flops=1e13)
    note = "the report's verdict is by approach2: fit=approach2 gives it"
    assert note in by_surface.notes
    question = dataclasses.replace(NOTHING, law=str(law_json), flops=1e13, fit="approach2")
    (by_verdict,) = predict(question, find_law(question))
    assert not any("verdict" in own for own in by_verdict.notes)
