"""The planner's memory estimate against what torch keeps for the backward pass, and after it."""

import pytest
import torch

from llmtrain.spec.errors import PlanError
from llmtrain.spec.memory import memory_bytes
from llmtrain.spec.plan import plan_run
from llmtrain.training.model import Transformer, cross_entropy
from llmtrain.training.optim import build_optimizer, set_lr

BIG = {"model.n_layers": 4, "model.d_model": 64, "model.d_head": 16}
VARIANTS = {
    "relu2": {},
    "gelu_layernorm": {"model.activation": "gelu", "model.norm": "layernorm"},
    "swiglu": {"model.activation": "swiglu"},
    "qk_norm": {"model.qk_norm": True},
    "learned": {"model.position": "learned", "model.tied_head": True},
    "bfloat16": {"runtime.dtype": "bfloat16"},
}


def estimate(config):
    plan = plan_run(config, vocab_size=256, unique_tokens=None)
    return plan, memory_bytes(config, plan)


def kept_for_backward(config, rows):
    """Bytes that one forward pass leaves for the backward pass, weights aside."""
    model = Transformer(config.model, vocab_size=256, seq_len=config.seq_len.seq_len)
    model.init_weights(0)
    own = [*model.parameters(), *model.buffers()]
    known = {tensor.untyped_storage().data_ptr() for tensor in own}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so no address comes again
        return tensor

    tokens = torch.zeros(rows, config.seq_len.seq_len, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=config.runtime.dtype == "bfloat16"):
            logits = model(tokens)
        cross_entropy(logits, tokens, z_loss=0.0)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("name", VARIANTS)
def test_activations_are_what_torch_keeps(make, name):
    config = make(BIG | VARIANTS[name])
    plan, found = estimate(config)
    stage = plan.stages[0]
    softmax = stage.step_tokens * 256 * 4  # of the logits' three tensors the one that is kept
    expected = found.activations + found.copies + softmax
    assert kept_for_backward(config, stage.rows) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weights_and_moments_are_what_torch_holds(make, optimizer):
    config = make(BIG | {"optimizer.name": optimizer})
    plan, found = estimate(config)
    model = Transformer(config.model, vocab_size=256, seq_len=32)
    model.init_weights(0)
    rule = build_optimizer(model, config.optimizer, plan.hyper, fused=False)
    model(torch.zeros(2, 32, dtype=torch.long)).sum().backward()
    assert found.gradients == sum(p.grad.nbytes for p in model.parameters())
    assert found.parameters == sum(p.nbytes for p in model.parameters())
    set_lr(rule, 1e-3)
    rule.step()
    moments = [v for s in states(rule) for v in s.values() if torch.is_tensor(v) and v.ndim > 0]
    assert found.optimizer == sum(moment.nbytes for moment in moments)


def states(rule):
    """The per-parameter state of an optimizer, or of the two of Muon."""
    parts = [rule] if hasattr(rule, "state") else [rule.muon, rule.adamw]
    return [state for part in parts for state in part.state.values()]


def test_smaller_passes_and_checkpointing_need_less(make):
    _, whole = estimate(make(BIG))
    _, halves = estimate(make(BIG | {"runtime.micro_batch_tokens": 128}))
    _, short = estimate(make(BIG | {"runtime.activation_checkpointing": True}))
    assert halves.activations * 2 == whole.activations
    assert halves.logits * 2 == whole.logits
    assert short.activations < whole.activations / 2
    assert halves.optimizer == whole.optimizer == short.optimizer


def test_a_run_that_would_not_fit_is_refused_before_it_starts(make):
    _, found = estimate(make(BIG))
    enough = make(BIG | {"runtime.memory_gb": found.total / 1e9})
    assert plan_run(enough, vocab_size=256, unique_tokens=None).n_steps > 0
    less = make(BIG | {"runtime.memory_gb": 0.99 * found.total / 1e9})
    with pytest.raises(PlanError, match=r"needs about .* more than runtime.memory_gb="):
        plan_run(less, vocab_size=256, unique_tokens=None)
