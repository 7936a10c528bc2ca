"""What is compiled, how often, and that nothing falls back to eager in silence."""

import shutil

import pytest
import torch
from setups import WARMED, new_session
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.utils import counters

from llmtrain.training import runtime
from llmtrain.training.stacked import Stack
from llmtrain.training.warm import warm_up

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"),
    pytest.mark.filterwarnings("ignore"),  # torch's own, while it compiles
]


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def train(made):
    """Return how many graphs were compiled before the first step and after it, and the losses."""
    before = counters["stats"]["unique_graphs"]
    weights = [p.detach().clone() for p in made.model.parameters()]
    for _ in warm_up(made):
        pass
    assert all(torch.equal(a, b) for a, b in zip(weights, made.model.parameters(), strict=True))
    warm = counters["stats"]["unique_graphs"]
    while made.step < made.plan.n_steps:
        made.train_step()
    losses = torch.stack(made.recent)
    evaluation = made.evaluate()
    return warm - before, counters["stats"]["unique_graphs"] - warm, losses, evaluation.loss


def test_a_chunked_loss_head_stays_outside_of_the_graphs(make, corpus):
    changes = {"runtime.compile": True, "runtime.micro_batch_tokens": 64}
    warm, later, full, _ = train(new_session(make, corpus, changes))
    torch._dynamo.reset()
    changes |= {"runtime.loss_head": "chunked"}
    *graphs, chunked, _ = train(new_session(make, corpus, changes))
    assert graphs == [warm, later]
    torch.testing.assert_close(chunked, full, rtol=1e-5, atol=0)


def test_depth_seed_and_rate_reuse_the_graphs_of_one_width(make, corpus):
    compiled = {"runtime.compile": True}
    warm, later, losses, evaluation = train(new_session(make, corpus, compiled))
    assert (warm, later) == (2, 0)  # training and evaluation, forward and backward together
    for changes in ({"model.n_layers": 4}, {"seed": 1, "recipe.peak_lr": 0.003}):
        assert train(new_session(make, corpus, compiled | changes))[:2] == (0, 0)
    _, none, eager, eager_evaluation = train(new_session(make, corpus, {}))
    assert none == 0
    torch.testing.assert_close(losses, eager, rtol=2e-4, atol=0.0)
    assert evaluation == pytest.approx(eager_evaluation, rel=2e-4)


def test_a_length_warmup_compiles_each_length_once_before_the_first_step(make, corpus):
    # 512 validation tokens are 16 rows: passes of 5 rows would leave one over.
    made = new_session(make, corpus, WARMED | {"runtime.compile": True})
    made.evaluator.rows_per_pass = 5
    lengths = {stage.row_len for stage in made.plan.stages}
    warm, later, losses, evaluation = train(made)
    assert (warm, later) == (len(lengths) + 1, 0)
    assert made.seconds["compile"] > made.seconds["train"]
    _, _, eager, eager_evaluation = train(new_session(make, corpus, WARMED))
    torch.testing.assert_close(losses, eager, rtol=2e-4, atol=0.0)
    assert evaluation == pytest.approx(eager_evaluation, rel=2e-4)


def test_a_stack_compiles_once_for_all_its_runs_and_depths(make, corpus):
    runs = [{"seed": 0}, {"seed": 1, "recipe.lr_multiplier": 0.3}]
    for depth, expected in ((2, 2), (4, 0)):
        changes = {"model.n_layers": depth, "runtime.compile": True}
        stack = Stack([new_session(make, corpus, changes | run) for run in runs])
        for _ in stack.warm_up():
            pass
        assert counters["stats"]["unique_graphs"] == expected
        while stack.step < stack.plan.n_steps:
            stack.train_step()
        for one in stack.sessions:
            one.evaluate()
        assert counters["stats"]["unique_graphs"] == expected
        counters.clear()
        assert stack.sessions[1].seconds["compile"] > 0
        for found, run in zip(stack.sessions, runs, strict=True):
            *_, losses, _ = train(new_session(make, corpus, {"model.n_layers": depth} | run))
            torch.testing.assert_close(torch.stack(found.recent), losses, rtol=2e-4, atol=0.0)


def test_more_graphs_than_allowed_are_an_error(make, corpus, monkeypatch):
    monkeypatch.setattr(runtime, "COMPILED_GRAPHS", 1)
    made = new_session(make, corpus, {"runtime.compile": True})
    with pytest.raises(FailOnRecompileLimitHit):
        train(made)
