"""The FLOP formula against torch's own counter, which watches the matmuls of a real model."""

import dataclasses
import random

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llmtrain.spec.flops import flops_per_token, param_groups
from llmtrain.training.model import Transformer, cross_entropy, parameter_counts

N_SHAPES = 100


def random_shape(model, rng):
    d_head = rng.choice([4, 8, 16])
    return dataclasses.replace(
        model,
        d_head=d_head,
        d_model=d_head * rng.randint(1, 6),
        n_layers=rng.randint(1, 4),
        ff_ratio=rng.choice([2.0, 8 / 3, 4.0]),
        ff_multiple=rng.choice([1, 8]),
        activation=rng.choice(["gelu", "swiglu", "relu2"]),
        norm=rng.choice(["rmsnorm", "layernorm"]),
        position=rng.choice(["rope", "learned"]),
        qk_norm=rng.choice([True, False]),
        tied_head=rng.choice([True, False]),
        bias=rng.choice([True, False]),
    )


def counted_per_token(model, tokens):
    """Return FLOPs per token of a forward and backward pass, attention as plain matmuls."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        _, loss = cross_entropy(model(tokens), tokens, z_loss=0.0)
        loss.backward()
    return counter.get_total_flops() / tokens.numel()


@pytest.mark.parametrize("index", range(N_SHAPES))
def test_formula_equals_the_counter(make, index):
    rng = random.Random(index)
    shape = random_shape(make().model, rng)
    vocab_size, seq_len, rows = rng.randint(20, 300), 8 * rng.randint(1, 8), rng.randint(1, 3)
    model = Transformer(shape, vocab_size=vocab_size, seq_len=seq_len)
    model.init_weights(0)
    tokens = torch.randint(vocab_size, (rows, seq_len))
    counted = counted_per_token(model, tokens)
    # The first layer's input needs no gradient through the lookup, so nothing is subtracted.
    formula = flops_per_token(shape, vocab_size=vocab_size, seq_len=seq_len)["full_attention"]
    assert counted == pytest.approx(formula, rel=1e-3)
    groups = param_groups(shape, vocab_size=vocab_size, seq_len=seq_len)
    assert groups.counts() == parameter_counts(model)
