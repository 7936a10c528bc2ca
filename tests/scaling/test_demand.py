"""Repetition and inference demand against the papers' numbers."""

import pytest

from llmtrain.scaling.demand import RepeatedData, best_for_flops, best_for_inference
from llmtrain.scaling.law import LossLaw
from llmtrain.scaling.published import published_law
from llmtrain.spec.errors import ConfigError


def law(key: str) -> LossLaw:
    found = published_law(key).loss_law
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("tokens", "loss"),
    [(1e10, 2.6658935779), (4e10, 2.5016633748), (1.6e11, 2.4159548764)],
)
def test_repeated_tokens_are_worth_what_muennighoff_found(tokens: float, loss: float) -> None:
    limited = RepeatedData(law=law("muennighoff_c4"), unique=1e10)
    assert limited.loss(1e9, tokens) == pytest.approx(loss, abs=1e-9)


def test_four_epochs_count_nearly_as_fresh_and_value_saturates() -> None:
    limited = RepeatedData(law=law("muennighoff_c4"), unique=1e10)
    assert limited.effective(1e9, 4e10)[1] == pytest.approx(3.72567e10, rel=1e-5)
    assert limited.effective(1e9, 1e14)[1] < 16.39e10
    assert limited.params_for(1e10) == pytest.approx(5.09865e8, rel=1e-5)


@pytest.mark.parametrize(
    ("served", "params", "tokens", "share"),
    [(0.0, 4.4329e9, 1.6070e11, 1.0), (1e12, 2.0292e9, 4.5023e11, 0.7260),
     (1e13, 1.1536e9, 1.6395e12, 0.3704)],
)  # fmt: skip
def test_serving_many_tokens_wants_a_smaller_model(
    served: float, params: float, tokens: float, share: float
) -> None:
    best = best_for_inference(law("sardana"), 2.2, served)
    plain = best_for_inference(law("sardana"), 2.2, 0.0)
    assert (best.params, best.tokens) == pytest.approx((params, tokens), rel=1e-4)
    whole = plain.total_flops + 2 * plain.params * served
    assert best.total_flops / whole == pytest.approx(share, rel=2e-4)


def test_without_a_limit_the_search_returns_the_closed_form() -> None:
    chin = law("besiroglu2024")
    best = best_for_flops(chin, 1e22)
    assert best.params == pytest.approx(float(chin.n_opt(1e22)), rel=1e-4)
    ample = best_for_flops(chin, 1e22, unique=1e15)
    assert ample.params == pytest.approx(best.params, rel=1e-3)


def test_scarce_tokens_cost_loss_and_both_limits_hold_together() -> None:
    chin = law("muennighoff_c4")
    scarce = best_for_flops(chin, 1e22, unique=1e10)
    assert scarce.loss > best_for_flops(chin, 1e22).loss
    best = best_for_inference(chin, scarce.loss, 1e13, unique=1e10)
    limited = RepeatedData(law=chin, unique=1e10)
    assert limited.loss(best.params, best.tokens) == pytest.approx(scarce.loss, abs=1e-6)
    assert best.params < scarce.params


def test_a_loss_below_the_floor_is_refused() -> None:
    with pytest.raises(ConfigError, match="floor"):
        best_for_inference(law("sardana"), 1.6, 0.0)
    with pytest.raises(ConfigError, match="repetition"):
        best_for_inference(law("sardana"), 1.9, 0.0, unique=1e9)
