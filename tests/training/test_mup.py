"""Coordinate checks: what a few steps change, against the width (arXiv 2203.03466, D.1)."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llmtrain.spec.config import ModelConfig, OptimizerConfig
from llmtrain.training.model import Transformer, cross_entropy
from llmtrain.training.optim import build_optimizer

VOCAB, SEQ_LEN, WIDTHS = 64, 32, (32, 64, 128, 256)


@dataclass(frozen=True)
class Recipe:
    peak_lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.0


def optimizer_config(name: Any) -> OptimizerConfig:
    return OptimizerConfig(
        name=name, eps=1e-8, grad_clip=None, z_loss=0.0, muon_momentum=0.95, muon_lr_scale=1.0
    )


def probe(model: Transformer, tokens: Tensor) -> dict[str, Tensor]:
    """Return the stream after each block and the logits."""
    seen: dict[str, Tensor] = {}
    handles = [
        block.register_forward_hook(lambda _, __, out, name=f"block {i}": seen.update({name: out}))
        for i, block in enumerate(model.blocks)
    ]
    with torch.no_grad():
        seen["logits"] = model(tokens)
    for handle in handles:
        handle.remove()
    return seen


def changes_after_training(config: ModelConfig, optimizer_name: Any, seed: int) -> dict[str, float]:
    """Train 4 steps on one batch; return the root mean square change of each coordinate."""
    model = Transformer(config, vocab_size=VOCAB, seq_len=SEQ_LEN)
    model.init_weights(seed)
    optimizer = build_optimizer(
        model, optimizer_config(optimizer_name), Recipe(), fused=optimizer_name == "adamw"
    )
    tokens = torch.randint(
        VOCAB, (4, SEQ_LEN + 1), generator=torch.Generator().manual_seed(100 + seed)
    )
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    before = probe(model, inputs)
    for _ in range(4):
        cross_entropy(model(inputs), targets, z_loss=0.0)[1].backward()
        optimizer.step()
        model.zero_grad()
    after = probe(model, inputs)
    return {name: (after[name] - before[name]).square().mean().sqrt().item() for name in before}


def slopes(config: ModelConfig, optimizer_name: str) -> dict[str, float]:
    """Return, for each coordinate, the slope of its log change against log width."""
    runs = [
        changes_after_training(replace(config, d_model=width), optimizer_name, seed=0)
        for width in WIDTHS
    ]
    return {
        name: float(np.polyfit(np.log(WIDTHS), [np.log(run[name]) for run in runs], 1)[0])
        for name in runs[0]
    }


@pytest.mark.parametrize("optimizer_name", ["adamw", "muon"])
def test_under_mup_the_effect_of_a_step_does_not_depend_on_the_width(
    tiny_model_config: ModelConfig, optimizer_name: str
) -> None:
    mup = replace(tiny_model_config, parametrization="mup", base_d_model=32)
    measured = slopes(mup, optimizer_name)
    # Not quite 0: through the head's random start the stream's change adds a part to the logits
    # that falls as 1/sqrt(width). The standard parametrisation below is beyond 0.4.
    assert all(abs(slope) < 0.22 for slope in measured.values()), measured


@pytest.mark.parametrize("optimizer_name", ["adamw", "muon"])
def test_under_the_standard_parametrisation_the_effect_of_a_step_grows_with_the_width(
    tiny_model_config: ModelConfig, optimizer_name: str
) -> None:
    measured = slopes(tiny_model_config, optimizer_name)
    assert all(slope > 0.4 for slope in measured.values()), measured


@pytest.mark.parametrize("init", ["fan_in", "fixed"])
@pytest.mark.parametrize("tied_head", [False, True])
def test_at_the_base_width_mup_is_the_standard_parametrisation(
    tiny_model_config: ModelConfig, init: Any, tied_head: bool
) -> None:
    config = replace(tiny_model_config, init=init, tied_head=tied_head, base_d_model=32)
    results = [
        changes_after_training(replace(config, parametrization=parametrization), "adamw", 0)
        for parametrization in ("standard", "mup")
    ]
    assert results[0] == results[1]


def test_the_first_logits_and_the_decay_per_step_do_not_depend_on_the_parametrisation(
    tiny_model_config: ModelConfig,
) -> None:
    config = replace(tiny_model_config, d_model=128, base_d_model=32)
    tokens = torch.arange(SEQ_LEN)[None]
    logits, decays = [], []
    for parametrization in ("standard", "mup"):
        model = Transformer(
            replace(config, parametrization=parametrization), vocab_size=VOCAB, seq_len=SEQ_LEN
        )
        model.init_weights(seed=0)
        logits.append(probe(model, tokens)["logits"])
        optimizer = build_optimizer(
            model, optimizer_config("adamw"), Recipe(weight_decay=0.1), fused=False
        )
        decays.append([group["lr"] * group["weight_decay"] for group in optimizer.param_groups])
    torch.testing.assert_close(logits[0], logits[1])
    assert decays[0] == pytest.approx(decays[1]) == [0.001, 0.001, 0.0]


def test_epsilon_falls_with_the_gradients(tiny_model_config: ModelConfig) -> None:
    mup = replace(tiny_model_config, parametrization="mup", d_model=128, base_d_model=32)
    model = Transformer(mup, vocab_size=VOCAB, seq_len=SEQ_LEN)
    for name in ("adamw", "adam", "nadam", "muon"):
        optimizer = build_optimizer(model, optimizer_config(name), Recipe(), fused=False)
        assert {group["eps"] for group in optimizer.param_groups[1:]} == {1e-8 / 4}
