import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llmtrain.spec.config import ModelConfig
from llmtrain.training.layers import rotary_table, rotate
from llmtrain.training.model import Transformer, cross_entropy, parameter_counts

VOCAB, SEQ_LEN = 61, 24
VARIANTS: list[dict[str, Any]] = [
    {"activation": "relu2"},
    {"activation": "swiglu", "qk_norm": True},
    {"activation": "gelu", "norm": "layernorm", "position": "learned", "bias": True},
    {"tied_head": True},
    {"parametrization": "mup", "base_d_model": 8},
]


def build(config: ModelConfig, *, checkpointing: bool = False, **changes: Any) -> Transformer:
    """Return a model whose branches all act; under init=fan_in they start at zero."""
    model = Transformer(
        replace(config, **{"init": "fixed", "init_std": 0.2} | changes),
        vocab_size=VOCAB,
        seq_len=SEQ_LEN,
        activation_checkpointing=checkpointing,
    )
    model.init_weights(seed=0)
    return model


def draw_tokens(*shape: int) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(1))


def influence(model: Transformer, target: int, *, window: int | None) -> Tensor:
    """Return, for each position, how much its embedding moves the logits at `target`."""
    gradients: list[Tensor] = []

    def watch(_: torch.nn.Module, __: Any, output: Tensor) -> None:
        output.register_hook(gradients.append)

    handle = model.embedding.register_forward_hook(watch)
    probe = torch.randn(VOCAB, generator=torch.Generator().manual_seed(2))
    (model(draw_tokens(1, SEQ_LEN), window=window)[0, target] * probe).sum().backward()
    handle.remove()
    return gradients[0][0].abs().sum(dim=-1)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_a_logit_depends_on_every_earlier_token_and_on_no_later_one(
    tiny_model_config: ModelConfig, changes: dict[str, Any]
) -> None:
    reach = influence(build(tiny_model_config, **changes), 10, window=None)
    assert (reach[:11] > 0).all()
    assert (reach[11:] == 0).all()


@pytest.mark.parametrize("window", [1, 2, 7, 23])
def test_a_window_lets_a_token_see_exactly_that_many_tokens(
    tiny_model_config: ModelConfig, window: int
) -> None:
    one_layer = build(tiny_model_config, n_layers=1)
    reach = influence(one_layer, 15, window=window)
    visible = range(max(0, 15 - window + 1), 16)
    assert [t for t in range(SEQ_LEN) if reach[t] > 0] == list(visible)


def test_layers_stack_their_windows(tiny_model_config: ModelConfig) -> None:
    reach = influence(build(tiny_model_config, n_layers=3), 20, window=4)
    assert [t for t in range(SEQ_LEN) if reach[t] > 0] == list(range(20 - 3 * 3, 21))


def test_a_window_of_the_whole_length_is_full_attention(tiny_model_config: ModelConfig) -> None:
    model, tokens = build(tiny_model_config), draw_tokens(2, SEQ_LEN)
    full = model(tokens)
    torch.testing.assert_close(model(tokens, window=SEQ_LEN), full, rtol=0, atol=0)
    # One below: only the last token of a row loses one key.
    shorter = model(tokens, window=SEQ_LEN - 1)
    torch.testing.assert_close(shorter[:, :-1], full[:, :-1])
    assert (shorter[:, -1] != full[:, -1]).any()


@pytest.mark.parametrize("activation", ["gelu", "swiglu", "relu2"])
@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
@pytest.mark.parametrize("position", ["rope", "learned"])
@pytest.mark.parametrize("tied_head", [False, True])
@pytest.mark.parametrize("init", ["fan_in", "fixed"])
def test_the_first_loss_is_that_of_a_uniform_guess(
    tiny_model_config: ModelConfig,
    activation: Any,
    norm: Any,
    position: Any,
    tied_head: bool,
    init: Any,
) -> None:
    model = build(
        tiny_model_config,
        activation=activation,
        norm=norm,
        position=position,
        tied_head=tied_head,
        init=init,
        init_std=0.02,
    )
    tokens = draw_tokens(16, SEQ_LEN + 1)
    nll, _ = cross_entropy(model(tokens[:, :-1]), tokens[:, 1:], z_loss=0.0)
    # Logits of variance s^2 cost about s^2/2: 1/64 here; the rest is the noise of 384 targets.
    assert float(nll) == pytest.approx(math.log(VOCAB), abs=0.04)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_bfloat16_autocast_stays_near_float32(
    tiny_model_config: ModelConfig, changes: dict[str, Any]
) -> None:
    model = build(tiny_model_config, **changes)
    tokens = draw_tokens(4, SEQ_LEN)
    exact = model(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(tokens)
    assert rounded.dtype == torch.bfloat16
    # 8 bits of mantissa: each of some ten roundings adds 2^-9 of the logits' spread.
    error = (rounded.float() - exact).square().mean().sqrt() / exact.std()
    assert error < 0.02


def test_a_tied_head_is_the_embedding_table_itself(tiny_model_config: ModelConfig) -> None:
    tied = build(tiny_model_config, tied_head=True)
    assert tied.head_weight is tied.embedding.weight
    assert sum(p.shape == (VOCAB, 32) for p in tied.parameters()) == 1
    assert sum(p.shape == (VOCAB, 32) for p in build(tiny_model_config).parameters()) == 2


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_rows_longer_than_the_context_are_refused_and_shorter_ones_are_prefixes(
    tiny_model_config: ModelConfig, position: Any
) -> None:
    model, tokens = build(tiny_model_config, position=position), draw_tokens(2, SEQ_LEN + 1)
    with pytest.raises(ValueError, match="25 tokens in a row exceed the model's seq_len=24"):
        model(tokens)
    torch.testing.assert_close(model(tokens[:, :7]), model(tokens[:, :SEQ_LEN])[:, :7])


def test_an_empty_window_is_refused(tiny_model_config: ModelConfig) -> None:
    with pytest.raises(ValueError, match="window=0 must be at least 1"):
        build(tiny_model_config)(draw_tokens(1, 4), window=0)


@pytest.fixture(params=["complex", "real"])
def turn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """Rotation by either of its two forms."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: request.param == "real")
    return rotate


def test_rotary_scores_depend_on_the_distance_alone(turn: Callable[..., Tensor]) -> None:
    n_positions, d_head = 40, 16
    table = rotary_table(n_positions, d_head, 10000.0)
    draws = torch.randn(1, 1, 3, 1, d_head, generator=torch.Generator().manual_seed(0))
    turned = turn(draws.expand(1, n_positions, 3, 1, d_head), table)
    query, key, value = turned[0, :, :, 0].unbind(1)
    scores = query @ key.T
    for distance in (0, 1, 5, 20):
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert scores[:, 0].std() > 0.1
    assert torch.equal(value, draws[0, 0, 2].expand_as(value))


def test_rotary_pairs_turn_by_the_papers_matrix(turn: Callable[..., Tensor]) -> None:
    x = torch.randn(2, 9, 3, 2, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    turned = turn(x, rotary_table(9, 6, 100.0))
    expected = x.detach().double().numpy().copy()
    for t, i in itertools.product(range(9), range(3)):  # equation 15
        angle = t * 100.0 ** (-2 * i / 6)
        matrix = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        pair = expected[:, t, :2, :, 2 * i : 2 * i + 2]
        expected[:, t, :2, :, 2 * i : 2 * i + 2] = pair @ np.array(matrix).T
    np.testing.assert_allclose(turned.detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    turned.backward(turned.detach())  # a rotation: its transpose takes back what it did
    assert x.grad is not None
    torch.testing.assert_close(x.grad, x.detach())


def test_initial_weights_follow_the_seed_and_nothing_else(tiny_model_config: ModelConfig) -> None:
    global_state = torch.get_rng_state()
    first = build(tiny_model_config)
    assert torch.equal(torch.get_rng_state(), global_state)
    torch.manual_seed(123)
    again = build(tiny_model_config)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name
    again.init_weights(seed=1)
    assert not torch.equal(first.embedding.weight, again.embedding.weight)


def test_a_model_without_initial_weights_is_loud(tiny_model_config: ModelConfig) -> None:
    model = Transformer(tiny_model_config, vocab_size=VOCAB, seq_len=SEQ_LEN)
    assert model(draw_tokens(1, 4)).isnan().all()


def test_matrices_start_with_the_spread_that_their_rule_says(
    tiny_model_config: ModelConfig,
) -> None:
    config = replace(tiny_model_config, d_model=128, n_layers=8, bias=True)
    residual = 1 / math.sqrt(2 * 8)
    expected = {
        "fan_in": {"qkv": 128**-0.5, "out": 0.0, "up": 128**-0.5,
                   "down": 0.0, "head": 1 / 128, "embedding": 0.05},
        "fixed": {"qkv": 0.05, "out": 0.05 * residual, "up": 0.05, "down": 0.05 * residual,
                  "head": 0.05, "embedding": 0.05},
    }  # fmt: skip
    for init, spreads in expected.items():
        model = build(config, init=init, init_std=0.05)
        for name, parameter in model.named_parameters():
            part = name.split(".")[-2]
            if name.endswith("weight") and part in spreads:
                # The error of a standard deviation over n draws is 1/sqrt(2n); n is 7,808 or more.
                assert parameter.std().item() == pytest.approx(spreads[part], rel=0.03), name
            elif name.endswith("bias"):
                assert (parameter == 0).all(), name


@pytest.mark.parametrize("window", [None, 5])
def test_activation_checkpointing_changes_no_bit(
    tiny_model_config: ModelConfig, window: int | None
) -> None:
    tokens = draw_tokens(3, SEQ_LEN)
    gradients = []
    for checkpointing in (False, True):
        model = build(tiny_model_config, checkpointing=checkpointing)
        cross_entropy(model(tokens, window=window), tokens, z_loss=1e-3)[1].backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_dropout_acts_in_training_only(tiny_model_config: ModelConfig) -> None:
    model, tokens = build(tiny_model_config, dropout=0.5), draw_tokens(2, SEQ_LEN)
    plain = build(tiny_model_config)
    assert not torch.equal(model(tokens), plain(tokens))
    model.eval()
    assert torch.equal(model(tokens), plain(tokens))


def test_cross_entropy_and_z_loss_match_their_formulas_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(2, 3, 7, generator=generator)
    targets = torch.randint(7, (2, 3), generator=generator)
    nll, loss = cross_entropy(logits.bfloat16(), targets, z_loss=0.01)
    exact = logits.bfloat16().double()
    partition = exact.exp().sum(dim=-1).log()
    picked = torch.stack([exact[b, t, targets[b, t]] for b in range(2) for t in range(3)])
    expected = (partition.flatten() - picked).mean()
    assert nll.dtype == loss.dtype == torch.float32
    torch.testing.assert_close(nll.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        loss.double(), expected + 0.01 * partition.square().mean(), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_parameter_counts_match_the_closed_form(
    tiny_model_config: ModelConfig, changes: dict[str, Any]
) -> None:
    config = replace(tiny_model_config, d_model=48, n_layers=3, **changes)
    counts = parameter_counts(build(config))
    D, F, L, K, V = 48, config.d_ff, 3, config.d_head, VOCAB
    up = (2 if config.activation == "swiglu" else 1) * F
    matrices = L * (3 * D * D + D * D + D * up + F * D)
    norm = D * (2 if config.norm == "layernorm" and config.bias else 1)
    biases = L * (3 * D + D + up + D) if config.bias else 0
    vectors = (2 * L + 1) * norm + biases + (2 * K * L if config.qk_norm else 0)
    tables = V * D * (1 if config.tied_head else 2)
    positions = SEQ_LEN * D if config.position == "learned" else 0
    assert counts == {
        "non_embedding": matrices,
        "no_input_embedding": matrices + V * D,
        "total": matrices + vectors + tables + positions,
    }


def test_a_meta_model_counts_without_memory(tiny_model_config: ModelConfig) -> None:
    with torch.device("meta"):
        model = Transformer(
            replace(tiny_model_config, d_model=8192, d_head=128, n_layers=80),
            vocab_size=32_000,
            seq_len=2048,
        )
    assert parameter_counts(model)["non_embedding"] == 80 * 12 * 8192**2
