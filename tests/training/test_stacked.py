"""Runs stepped as one are the runs alone: seeds, rates and data orders at one shape."""

import copy
import gc
import math
import weakref

import pytest
import torch
from setups import GPT2, WARMED, new_session

from llmtrain.spec.errors import ConfigError
from llmtrain.training.batches import resident
from llmtrain.training.model import Transformer, cross_entropy
from llmtrain.training.stacked import Stack, stack_models, stacked_cross_entropy

CPU = torch.device("cpu")
RUNS = [{"seed": 0}, {"seed": 1}, {"seed": 1, "recipe.lr_multiplier": 0.3}]
MODERN = {
    "model.activation": "swiglu",
    "model.qk_norm": True,
    "model.parametrization": "mup",
    "model.base_d_model": 8,
    "optimizer.z_loss": 1e-3,
}


def sessions(make, corpus, changes, runs=RUNS):
    return [new_session(make, corpus, changes | run) for run in runs]


def by_counters(made):
    """Make a session look up everything on its device, as for a CUDA graph."""
    made.batches.source.resident = resident(made.batches.source.tokens, CPU)
    made.whole = made.whole_step()


def steps(one, n):
    for _ in range(n):
        one.train_step()


def assert_close(found, expected, rtol):
    assert found.step == expected.step
    assert found.last_lr == expected.last_lr
    losses = (torch.stack(made.recent) for made in (found, expected))
    torch.testing.assert_close(*losses, rtol=rtol, atol=0.0)
    torch.testing.assert_close(found.grad_norm, expected.grad_norm, rtol=100 * rtol, atol=0.0)
    assert found.evaluate().loss == pytest.approx(expected.evaluate().loss, rel=rtol)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        GPT2,
        MODERN,
        WARMED | {"runtime.micro_batch_tokens": 96},
        WARMED | {"seq_len.mode": "window", "optimizer.name": "muon"},
        {"optimizer.name": "nadam", "runtime.activation_checkpointing": True},
    ],
    ids=str,
)
def test_a_replica_is_the_run_alone(make, corpus, changes):
    changes = {"budget.n_tokens": 7_680} | changes
    stacked, alone = sessions(make, corpus, changes), sessions(make, corpus, changes)
    stack = Stack(stacked)
    assert stack.plan.n_steps >= 25
    steps(stack, stack.plan.n_steps)
    for found, expected in zip(stacked, alone, strict=True):
        steps(expected, expected.plan.n_steps)
        assert_close(found, expected, rtol=5e-6)  # 1e-6 seen, after 25 to 40 steps


def test_a_stack_in_bfloat16_stays_near_its_runs(make, corpus):
    changes = GPT2 | MODERN | {"runtime.dtype": "bfloat16"}
    stacked, alone = (sessions(make, corpus, changes) for _ in range(2))
    steps(Stack(stacked), 20)
    for found, expected in zip(stacked, alone, strict=True):
        steps(expected, 20)
        losses = (torch.stack(made.recent) for made in (found, expected))
        torch.testing.assert_close(*losses, rtol=1e-2, atol=0.0)


def test_a_stack_of_one_is_the_run_alone(make, corpus):
    (stacked,), alone = sessions(make, corpus, {}, [{}]), new_session(make, corpus, {})
    steps(Stack([stacked]), 20)
    steps(alone, 20)
    assert_close(stacked, alone, rtol=2e-6)


@pytest.mark.parametrize("changes", [WARMED, {"optimizer.name": "adam"}], ids=str)
def test_a_stack_by_the_devices_counters_is_the_stack(make, corpus, changes):
    one, other = sessions(make, corpus, changes), sessions(make, corpus, changes)
    for made in other:
        by_counters(made)
    stack, whole = Stack(one), Stack(other)
    for _ in range(2):
        for _ in whole.warm_up():
            pass
        steps(stack, 8)
        steps(whole, 8)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(torch.stack(a.recent), torch.stack(b.recent))
        assert torch.equal(a.grad_norm, b.grad_norm)
        for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True):
            assert torch.equal(p, q)
    steps(Stack(one[1:]), 3)
    steps(Stack(other[1:]), 3)
    assert torch.equal(torch.stack(one[2].recent), torch.stack(other[2].recent))


def test_memory_is_free_as_soon_as_nobody_holds_it(make, corpus):
    gc.disable()  # a GPU's memory would not wait for it either
    try:
        made = sessions(make, corpus, {})
        for one in made:
            by_counters(one)
        stack = Stack(made)
        steps(stack, 2)
        held = [weakref.ref(p) for p in (*stack.model.parameters(), *made[0].model.parameters())]
        del stack, made, one
        assert [ref() for ref in held] == [None] * len(held)
    finally:
        gc.enable()


def test_logits_and_losses_are_the_models_own(make, corpus):
    models = [made.model for made in sessions(make, corpus, GPT2)]
    tokens = torch.randint(256, (3, 4, 33), generator=torch.Generator().manual_seed(0))
    expected = [
        cross_entropy(model(rows[:, :-1]), rows[:, 1:], z_loss=0.1)
        for model, rows in zip(models, tokens, strict=True)
    ]
    logits = stack_models(models)(tokens[..., :-1].flatten(0, 1))
    nll, loss = stacked_cross_entropy(
        logits, tokens[..., 1:].flatten(0, 1), n_replicas=3, z_loss=0.1
    )
    torch.testing.assert_close(nll, torch.stack([one for one, _ in expected]))
    torch.testing.assert_close(loss, sum(one for _, one in expected))


def test_parameters_lie_in_the_stacks_memory(make, corpus):
    models = [made.model for made in sessions(make, corpus, MODERN)]
    stacked = stack_models(models)
    assert isinstance(stacked, Transformer)
    for name, whole in stacked.named_parameters():
        for row, model in enumerate(models):
            part = model.get_parameter(name)
            assert part.data_ptr() == whole[row].data_ptr()
            assert part.shape == whole.shape[1:]


def test_a_nan_in_one_leaves_the_others_bit_equal(make, corpus):
    sick, well = (Stack(sessions(make, corpus, GPT2)) for _ in range(2))
    steps(sick, 5)
    steps(well, 5)
    with torch.no_grad():
        next(sick.sessions[1].model.parameters())[3, 1] = math.nan
    steps(sick, 8)
    steps(well, 8)
    assert not sick.sessions[1].grad_norm.isfinite()
    for row in (0, 2):
        found, expected = sick.sessions[row], well.sessions[row]
        assert torch.equal(torch.stack(found.recent), torch.stack(expected.recent))
        for a, b in zip(found.model.parameters(), expected.model.parameters(), strict=True):
            assert torch.equal(a, b)


def test_a_stack_goes_on_without_one_and_from_states_of_runs_alone(make, corpus):
    alone = sessions(make, corpus, {})
    stack = Stack(sessions(make, corpus, {}))
    steps(stack, 6)
    stack = Stack([stack.sessions[0], stack.sessions[2]])
    assert stack.step == 6
    steps(stack, 6)
    for one in alone:
        steps(one, 6)
    states = [copy.deepcopy(one.state()) for one in alone]
    for one in alone:
        steps(one, 6)
    for found, expected in zip(stack.sessions, (alone[0], alone[2]), strict=True):
        assert_close(found, expected, rtol=5e-6)

    resumed = sessions(make, corpus, {})
    for one, state in zip(resumed, states, strict=True):
        one.restore(state)
    steps(Stack(resumed), 6)
    by_itself = new_session(make, corpus, RUNS[2])
    by_itself.restore(copy.deepcopy(stack.sessions[1].state()))
    for one in (resumed[2], by_itself, alone[2]):
        steps(one, 3)
    assert_close(resumed[2], alone[2], rtol=5e-6)
    assert float(by_itself.recent[-1]) == pytest.approx(float(alone[2].recent[-1]), rel=5e-6)


def test_seconds_are_shared_among_the_runs(make, corpus):
    stack = Stack(sessions(make, corpus, {}))
    steps(stack, 3)
    seconds = [made.seconds["train"] for made in stack.sessions]
    assert 0 < seconds[0] == seconds[1] == seconds[2]


@pytest.mark.parametrize(
    "runs",
    [
        [{}, {"recipe.peak_lr": 0.02}],
        [{}, {"optimizer.grad_clip": 2.0}],
        [{"model.dropout": 0.1}, {"model.dropout": 0.1, "seed": 1}],
        [{}, {"budget.n_tokens": 10_240}],
    ],
    ids=str,
)
def test_other_runs_are_not_stacked(make, corpus, runs):
    with pytest.raises(ConfigError, match="train them one by one"):
        Stack(sessions(make, corpus, {}, runs))


def test_runs_at_other_steps_are_not_stacked(make, corpus):
    two = sessions(make, corpus, {}, RUNS[:2])
    steps(two[0], 1)
    with pytest.raises(ConfigError, match="train them one by one"):
        Stack(two)
