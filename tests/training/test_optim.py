import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llmtrain.spec.config import ModelConfig, OptimizerConfig
from llmtrain.training.fused import HostAdamW
from llmtrain.training.model import Transformer, cross_entropy
from llmtrain.training.optim import (
    UpdateRule,
    build_optimizer,
    clip_gradients,
    parameter_groups,
    set_lr,
)

VOCAB, SEQ_LEN = 61, 16
NAMES: list[Any] = ["adamw", "adam", "nadam", "muon"]


@dataclass(frozen=True)
class Recipe:
    peak_lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1


@pytest.fixture
def config() -> OptimizerConfig:
    return OptimizerConfig(
        name="adamw", eps=1e-8, grad_clip=1.0, z_loss=0.0, muon_momentum=0.95, muon_lr_scale=1.0
    )


def build_model(config: ModelConfig, **changes: Any) -> Transformer:
    # init=fan_in starts the branches at zero, where half of the gradients vanish.
    config = replace(config, **{"init": "fixed", "init_std": 0.1} | changes)
    model = Transformer(config, vocab_size=VOCAB, seq_len=SEQ_LEN)
    model.init_weights(seed=0)
    return model


def fill_gradients(model: Transformer, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(VOCAB, (4, SEQ_LEN + 1), generator=generator)
    cross_entropy(model(tokens[:, :-1]), tokens[:, 1:], z_loss=0.0)[1].backward()


def train(model: Transformer, optimizer: UpdateRule, steps: range) -> None:
    for step in steps:
        set_lr(optimizer, 0.01 / (1 + step))
        fill_gradients(model, step)
        clip_gradients(list(model.parameters()), 1.0)
        optimizer.step()
        model.zero_grad()


def weights(model: Transformer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def decays(name: str) -> bool:
    return name.endswith("weight") and "norm" not in name and "embedding" not in name


@pytest.mark.parametrize("fused", [False, True])
def test_adamw_follows_the_papers_update_written_out_in_numpy(
    tiny_model_config: ModelConfig, config: OptimizerConfig, fused: bool
) -> None:
    model = build_model(tiny_model_config)
    optimizer = build_optimizer(model, config, Recipe(), fused=fused)
    expected = {name: w.double().numpy() for name, w in weights(model).items()}
    first = {name: np.zeros_like(w) for name, w in expected.items()}
    second = {name: np.zeros_like(w) for name, w in expected.items()}
    for step in (1, 2, 3):
        fill_gradients(model, step)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            gradient = parameter.grad.double().numpy()
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.95 * second[name] + 0.05 * gradient**2
            direction = (first[name] / (1 - 0.9**step)) / (
                np.sqrt(second[name] / (1 - 0.95**step)) + 1e-8
            )
            decay = 0.1 * expected[name] if decays(name) else 0.0
            expected[name] = expected[name] - 0.01 * (direction + decay)
        optimizer.step()
        model.zero_grad()
    for name, weight in weights(model).items():
        # An entry moves by at most lr a step, known to float32's seven digits.
        np.testing.assert_allclose(weight.numpy(), expected[name], atol=1e-6, err_msg=name)


def test_adamw_equals_torchs_own_bit_for_bit(
    tiny_model_config: ModelConfig, config: OptimizerConfig
) -> None:
    ours, reference = build_model(tiny_model_config), build_model(tiny_model_config)
    named = dict(reference.named_parameters())
    optimizer = build_optimizer(ours, config, Recipe(), fused=True)
    torchs = torch.optim.AdamW(
        [
            {"params": [p for n, p in named.items() if decays(n)], "weight_decay": 0.1},
            {"params": [p for n, p in named.items() if not decays(n)], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.9, 0.95),
        fused=True,
    )
    for step in range(4):
        for model, rule in ((ours, optimizer), (reference, torchs)):
            fill_gradients(model, step)
            rule.step()
            model.zero_grad()
    for name, weight in weights(ours).items():
        assert torch.equal(weight, named[name]), name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tied_head": True},
        {"qk_norm": True, "activation": "swiglu", "parametrization": "mup", "base_d_model": 16},
        {"norm": "layernorm", "position": "learned", "bias": True},
    ],
    ids=str,
)
def test_groups_partition_all_parameters_and_decay_the_matrices_alone(
    tiny_model_config: ModelConfig, config: OptimizerConfig, name: Any, changes: dict[str, Any]
) -> None:
    model = build_model(tiny_model_config, **changes)
    optimizer = build_optimizer(model, replace(config, name=name), Recipe(), fused=False)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    decayed = {
        id(p) for group in optimizer.param_groups for p in group["params"] if group["weight_decay"]
    }
    matrices = {
        id(p)
        for module_name, module in model.named_modules()
        for p in [getattr(module, "weight", None)]
        if p is not None and p.ndim == 2 and module_name not in ("embedding", "position")
    }
    assert decayed == (set() if name == "adam" else matrices)


@pytest.mark.parametrize("tied_head", [False, True])
def test_muon_moves_the_matrices_of_the_blocks_and_adamw_the_rest(
    tiny_model_config: ModelConfig, config: OptimizerConfig, tied_head: bool
) -> None:
    muon_config = replace(config, name="muon", muon_lr_scale=0.5)
    ours = build_model(tiny_model_config, tied_head=tied_head)
    alone = build_model(tiny_model_config, tied_head=tied_head)
    recipe = Recipe(weight_decay=0.0)
    optimizer = build_optimizer(ours, muon_config, recipe, fused=False)
    adamw = build_optimizer(alone, config, recipe, fused=False)
    start = weights(ours)
    for model, rule in ((ours, optimizer), (alone, adamw)):
        fill_gradients(model, 0)
        rule.step()
    for name, by_adamw in weights(alone).items():
        moved = weights(ours)[name]
        if name.startswith("blocks") and name.endswith("weight") and "norm" not in name:
            update = (moved - start[name]) / 0.01
            singular = torch.linalg.svdvals(update)
            # Newton-Schulz leaves singular values within about 0.7 to 1.2 of one size (a few small
            # ones lag), here 0.5 * 0.2 * sqrt(longer side): AdamW's spread (2502.16982, eq. 4).
            size = 0.5 * 0.2 * math.sqrt(max(update.shape))
            assert 0.6 * size < singular.median() < singular.max() < 1.3 * size, name
            assert not torch.equal(moved, by_adamw)
        else:
            assert torch.equal(moved, by_adamw), name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("parametrization", ["standard", "mup"])
def test_every_group_follows_the_schedule_at_its_own_scale(
    tiny_model_config: ModelConfig, config: OptimizerConfig, name: Any, parametrization: Any
) -> None:
    model = build_model(tiny_model_config, parametrization=parametrization, base_d_model=8)
    named = {id(p): n for n, p in model.named_parameters()}
    optimizer = build_optimizer(
        model, replace(config, name=name, muon_lr_scale=0.3), Recipe(), fused=False
    )
    hidden = 0.3 if name == "muon" else 1.0
    if parametrization == "mup":  # m = 32/8 = 4
        hidden *= 0.5 if name == "muon" else 0.25
    for lr in (0.01, 0.002):
        if lr != 0.01:
            set_lr(optimizer, lr)
        for group in optimizer.param_groups:
            for p in group["params"]:
                is_hidden = named[id(p)].startswith("blocks") and p.ndim == 2
                assert group["lr"] == pytest.approx(lr * (hidden if is_hidden else 1.0))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fused", [False, True])
def test_a_restored_optimizer_continues_bit_for_bit(
    tiny_model_config: ModelConfig, config: OptimizerConfig, name: Any, fused: bool
) -> None:
    config = replace(config, name=name)
    model = build_model(tiny_model_config)
    optimizer = build_optimizer(model, config, Recipe(), fused=fused)
    train(model, optimizer, range(4))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, range(4, 8))
    resumed = Transformer(model.config, vocab_size=VOCAB, seq_len=SEQ_LEN)
    fresh = build_optimizer(resumed, config, Recipe(peak_lr=0.5), fused=fused)
    resumed.load_state_dict(saved[0])
    fresh.load_state_dict(copy.deepcopy(saved[1]))
    train(resumed, fresh, range(4, 8))
    expected = weights(model)
    model.load_state_dict(saved[0])  # and so does one that had gone on
    optimizer.load_state_dict(saved[1])
    train(model, optimizer, range(4, 8))
    for again in (resumed, model):
        for key, weight in weights(again).items():
            assert torch.equal(weight, expected[key]), key


def test_the_hosts_adamw_is_torchs_bit_for_bit(
    tiny_model_config: ModelConfig, config: OptimizerConfig
) -> None:
    ours, theirs = build_model(tiny_model_config), build_model(tiny_model_config)
    ours_rule = build_optimizer(ours, config, Recipe(), fused=True)
    assert isinstance(ours_rule, HostAdamW)
    groups = parameter_groups(theirs, Recipe(), matrix_optimizer="adam")
    theirs_rule = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=config.eps, fused=True)
    for model, rule in ((ours, ours_rule), (theirs, theirs_rule)):
        for step in (0, 5):
            fill_gradients(model, step)
            model.final_norm.weight.grad = None  # whoever has no gradient is left out
            rule.step()
            model.zero_grad()
            train(model, rule, range(step + 1, step + 4))
    expected = weights(theirs)
    for key, weight in weights(ours).items():
        assert torch.equal(weight, expected[key]), key
    mine, torchs = ours_rule.state_dict()["state"], theirs_rule.state_dict()["state"]
    for number, state in torchs.items():
        for key, value in state.items():
            assert torch.equal(mine[number][key], value), (number, key)
    assert len({float(state["step"]) for state in mine.values()}) == 2


@pytest.mark.parametrize("max_norm", [None, 0.05, 1e6])
def test_clipping_is_torchs_bit_for_bit(
    tiny_model_config: ModelConfig, max_norm: float | None
) -> None:
    ours, theirs = build_model(tiny_model_config), build_model(tiny_model_config)
    fill_gradients(ours, 0)
    fill_gradients(theirs, 0)
    norm = clip_gradients(list(ours.parameters()), max_norm)
    limit = math.inf if max_norm is None else max_norm
    assert torch.equal(norm, torch.nn.utils.clip_grad_norm_(theirs.parameters(), limit))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("max_norm", [None, 0.05, 1e6])
def test_clipping_bounds_the_global_norm_and_returns_the_norm_before(
    tiny_model_config: ModelConfig, max_norm: float | None
) -> None:
    model = build_model(tiny_model_config)
    fill_gradients(model, 0)
    before = [p.grad.double().clone() for p in model.parameters() if p.grad is not None]
    norm = math.sqrt(sum(float(g.square().sum()) for g in before))
    assert norm > 0.05
    assert clip_gradients(list(model.parameters()), max_norm).item() == pytest.approx(
        norm, rel=1e-5
    )
    factor = min(1.0, max_norm / norm) if max_norm is not None else 1.0
    after = [p.grad.double() for p in model.parameters() if p.grad is not None]
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old * factor, rtol=2e-5, atol=1e-9)


class CountReads(TorchDispatchMode):
    """Counts tensors read back by the host: .item(), float(), bool()."""

    n_reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n_reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_a_step_reads_nothing_back_from_the_device(
    tiny_model_config: ModelConfig, config: OptimizerConfig, name: Any
) -> None:
    model = build_model(tiny_model_config)
    optimizer = build_optimizer(model, replace(config, name=name), Recipe(), fused=True)
    with CountReads() as reads:
        train(model, optimizer, range(2))
        assert reads.n_reads == 0
        torch.ones(()).item()
    assert reads.n_reads == 1
