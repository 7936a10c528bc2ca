"""Whole-step CUDA graphs and what they rest on: `pytest -m gpu`. Not run without CUDA."""

import copy

import numpy as np
import pytest
import torch
from setups import WARMED, new_session

from llmtrain.training.batches import TokenSource
from llmtrain.training.memory import _FITTING, free_memory, train_in_memory
from llmtrain.training.stacked import Stack
from llmtrain.training.warm import warm_up

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
    pytest.mark.filterwarnings("default"),  # torch's own, as of its sync debug mode
]
GRAPH = {"runtime.device": "cuda", "runtime.cuda_graph": "on"}
EAGER = {"runtime.device": "cuda"}


def trace(made, steps):
    found = []
    for _ in range(steps):
        made.train_step()
        found.append(made.drain_losses())
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer.name": "adam"},
        {"runtime.micro_batch_tokens": 96},
        {"runtime.activation_checkpointing": True},
        {"runtime.compile": True},
        {"runtime.dtype": "bfloat16", "runtime.compile": True},
        WARMED,
        WARMED | {"seq_len.mode": "window"},
    ],
    ids=str,
)
def test_replayed_steps_are_the_eager_steps(make, corpus, changes):
    eager, graphed = (new_session(make, corpus, changes | kind) for kind in (EAGER, GRAPH))
    n_steps = eager.plan.n_steps
    tolerance = 2e-2 if changes.get("runtime.dtype") else 2e-4
    for _ in warm_up(graphed):
        pass
    assert trace(graphed, n_steps) == pytest.approx(trace(eager, n_steps), rel=tolerance)
    assert len(graphed.whole.graphs) == len(graphed.plan.stages)
    assert float(graphed.grad_norm) == pytest.approx(float(eager.grad_norm), rel=10 * tolerance)


def test_capturing_changes_neither_weights_nor_random_numbers(make, corpus):
    made = new_session(make, corpus, GRAPH | WARMED)
    before = [p.detach().clone() for p in made.model.parameters()]
    random = torch.cuda.get_rng_state()
    for _ in warm_up(made):
        pass
    assert torch.equal(random, torch.cuda.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before, made.model.parameters(), strict=True))
    assert not any(v.any() for entry in made.optimizer.state.values() for v in entry.values())


@pytest.mark.parametrize("kind", [EAGER, GRAPH], ids=["eager", "graph"])
def test_steady_steps_wait_for_nothing(make, corpus, kind):
    made = new_session(make, corpus, kind | WARMED)
    for _ in warm_up(made):
        pass
    made.train_step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(made.plan.n_steps - 1):
            made.train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert made.drain_losses() > 0


def test_a_graphed_state_goes_on_eagerly_and_back(make, corpus):
    straight, graphed = (
        new_session(make, corpus, EAGER),
        new_session(make, corpus, GRAPH),
    )
    first = trace(graphed, 6)
    assert first == pytest.approx(trace(straight, 6), rel=2e-4)
    eager = new_session(make, corpus, EAGER)
    eager.restore(copy.deepcopy(graphed.state()))
    graphed.restore(copy.deepcopy(straight.state()))  # captured anew
    expected = trace(straight, 6)
    assert trace(eager, 6) == pytest.approx(expected, rel=2e-4)
    assert trace(graphed, 6) == pytest.approx(expected, rel=2e-4)


def test_tokens_are_gathered_on_the_device():
    tokens = np.random.default_rng(0).integers(0, 50_000, 10_000).astype(np.uint16)
    source = TokenSource(tokens, torch.device("cuda"))
    assert source.resident is not None
    starts = np.array([0, 17, 9_000])
    inputs, targets = source.rows(starts, 100)
    for row, start in enumerate(starts):
        assert np.array_equal(inputs[row].cpu().numpy(), tokens[start : start + 100])
        assert np.array_equal(targets[row].cpu().numpy(), tokens[start + 1 : start + 101])
    on_device, _ = source.rows(torch.from_numpy(starts).to("cuda"), 100)
    assert torch.equal(on_device, inputs)


@pytest.mark.parametrize("graph", ["off", "on"])
def test_out_of_memory_halves_the_passes_and_goes_on(make, corpus, tmp_path, graph):
    big = GRAPH | {
        "runtime.cuda_graph": graph,
        "recipe.batch_tokens": 2**18,
        "budget.n_tokens": 2**19,
        "recipe.warmup_tokens": 1000,
        "data.max_epochs": 1e6,
    }
    total = torch.cuda.get_device_properties(0).total_memory
    _FITTING.clear()
    for mebibytes in (2048, 1024, 512, 256):  # from more than all passes at once need
        free_memory()
        room = torch.cuda.memory_reserved() + mebibytes * 2**20
        torch.cuda.set_per_process_memory_fraction(room / total)
        try:
            config = make(big | {"runs_root": str(tmp_path / str(mebibytes))})
            record = train_in_memory(config, corpus)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        if int(record.hardware["micro_batch_tokens"]) < 2**18:
            break
    else:
        pytest.fail("memory never ran out")
    assert record.train_loss > 0


@pytest.mark.parametrize("kind", [EAGER, GRAPH], ids=["eager", "graph"])
def test_a_stack_is_its_runs_alone(make, corpus, kind):
    runs = [{"seed": 0}, {"seed": 1, "recipe.lr_multiplier": 0.3}]
    stack = Stack([new_session(make, corpus, kind | WARMED | run) for run in runs])
    for _ in stack.warm_up():
        pass
    for _ in range(stack.plan.n_steps):
        stack.train_step()
    for found, run in zip(stack.sessions, runs, strict=True):
        expected = trace(new_session(make, corpus, EAGER | WARMED | run), stack.plan.n_steps)
        assert torch.stack(found.recent).tolist() == pytest.approx(expected, rel=2e-4)
    if stack.whole is not None:
        assert len(stack.whole.graphs) == len(stack.plan.stages)
