"""The planner's memory estimate against what torch keeps for the backward pass, and after it."""

import dataclasses

import pytest
import torch
from torch.nn import functional

from llmtrain.spec.errors import PlanError
from llmtrain.spec.memory import memory_bytes
from llmtrain.spec.plan import plan_run
from llmtrain.training.model import Transformer, chunked_nll, cross_entropy
from llmtrain.training.optim import build_optimizer, set_lr
from llmtrain.training.roofline import peak_allocated
from llmtrain.training.session import Session

BIG = {"model.n_layers": 4, "model.d_model": 64, "model.d_head": 16}
BPE = {"data.tokenizer": "bpe", "data.vocab_size": 4096}
WIDE = BIG | BPE | {"budget.n_tokens": 40_960}
VARIANTS = {
    "relu2": {},
    "gelu_layernorm": {"model.activation": "gelu", "model.norm": "layernorm"},
    "swiglu": {"model.activation": "swiglu"},
    "qk_norm": {"model.qk_norm": True},
    "learned": {"model.position": "learned", "model.tied_head": True},
    "bfloat16": {"runtime.dtype": "bfloat16"},
    "chunked": {"runtime.loss_head": "chunked"},
    "bfloat16_chunked": {"runtime.dtype": "bfloat16", "runtime.loss_head": "chunked"} | BPE,
}


def estimate(config):
    plan = plan_run(config, vocab_size=256, unique_tokens=None)
    return plan, memory_bytes(config, plan)


def kept_for_backward(config, rows):
    """Bytes that one forward pass leaves for the backward pass, weights aside."""
    vocab, seq_len = config.data.vocab_size, config.seq_len.seq_len
    model = Transformer(config.model, vocab_size=vocab, seq_len=seq_len)
    model.init_weights(0)
    own = [*model.parameters(), *model.buffers()]
    known = {tensor.untyped_storage().data_ptr() for tensor in own}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so no address comes again
        return tensor

    tokens = torch.zeros(rows, seq_len, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=config.runtime.dtype == "bfloat16"):
            if config.runtime.loss_head == "chunked":
                model(tokens, targets_BT=tokens)
            else:
                logits = model(tokens)
        if config.runtime.loss_head == "full":
            cross_entropy(logits, tokens, z_loss=0.0)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("name", VARIANTS)
def test_activations_are_what_torch_keeps(make, name):
    config = make(BIG | VARIANTS[name])
    plan, found = estimate(config)
    stage = plan.stages[0]
    softmax = stage.step_tokens * 256 * 4  # of the logits' three tensors the one that is kept
    if config.runtime.loss_head == "chunked":
        softmax = 0
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


@pytest.mark.parametrize(("n_tokens", "n_passes"), [(512, 1), (2048, 1), (1024, 2)])
def test_a_chunked_heads_part_is_what_torch_allocates(make, n_tokens, n_passes):
    changes = {"recipe.batch_tokens": n_tokens * n_passes, "runtime.micro_batch_tokens": n_tokens}
    _, found = estimate(make(WIDE | changes | {"runtime.loss_head": "chunked"}))
    x = torch.zeros(n_tokens, 64, requires_grad=True)
    weight = torch.zeros(4096, 64, requires_grad=True)
    targets = torch.zeros(n_tokens, dtype=torch.long)

    def passes():
        for _ in range(n_passes):
            x.grad = None  # a stream is not a leaf
            chunked_nll(x, weight, targets).backward()

    assert peak_allocated(passes) == pytest.approx(found.logits + weight.nbytes, rel=0.05)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_full_heads_part_is_what_torch_allocates(make, dtype):
    _, found = estimate(make(WIDE | {"recipe.batch_tokens": 2048, "runtime.dtype": dtype}))
    x = torch.zeros(1, 2048, 64, requires_grad=True)
    weight = torch.zeros(4096, 64, requires_grad=True)
    targets = torch.zeros(1, 2048, dtype=torch.long)

    def head():
        with torch.autocast("cpu", enabled=dtype == "bfloat16"):
            logits = functional.linear(x, weight)
        return cross_entropy(logits, targets, z_loss=0.0)[1]

    assert peak_allocated(lambda: head().backward()) == pytest.approx(found.logits, rel=0.05)


def test_a_step_with_a_chunked_head_needs_as_much_less_as_is_estimated(make, corpus):
    wide = dataclasses.replace(
        corpus, manifest=dataclasses.replace(corpus.manifest, vocab_size=4096)
    )
    needed, logits = {}, {}
    for head in ("full", "chunked"):
        config = make(WIDE | {"runtime.loss_head": head, "recipe.batch_tokens": 2048})
        plan, found = estimate(config)
        session = Session(config, plan, wide, torch.device("cpu"))
        session.train_step()  # moments are there, and libraries
        needed[head], logits[head] = peak_allocated(session.train_step), found.logits
    assert needed["full"] - needed["chunked"] > 0.9 * (logits["full"] - logits["chunked"])


def test_the_peak_of_a_call_is_the_most_that_was_there_at_once():
    def call():
        for n in (1, 3, 2):
            one = torch.ones(n, 250_000)
            two = one.clone()
            del one, two

    assert peak_allocated(call) == 6_000_000


def test_a_run_that_would_not_fit_is_refused_before_it_starts(make):
    _, found = estimate(make(BIG))
    enough = make(BIG | {"runtime.memory_gb": found.total / 1e9})
    assert plan_run(enough, vocab_size=256, unique_tokens=None).n_steps > 0
    less = make(BIG | {"runtime.memory_gb": 0.99 * found.total / 1e9})
    with pytest.raises(PlanError, match=r"needs about .* more than runtime.memory_gb="):
        plan_run(less, vocab_size=256, unique_tokens=None)
