"""A run's graphs are those that torch makes: no cell is taken for another's twin, or for new."""

import functools

import pytest
import torch
from setups import GPT2, WARMED, new_session
from torch._dynamo.utils import counters

from llmtrain.spec import graphs as spec_graphs
from llmtrain.spec.graphs import graphs
from llmtrain.training.layers import Block
from llmtrain.training.stacked import Stack
from llmtrain.training.warm import warm_up

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own, while it traces

WINDOW = WARMED | {"seq_len.mode": "window"}
# What is asked for, one after another in one process, and how many graphs are new by it.
CASES = [
    ({}, 2),
    ({"model.n_layers": 4, "seed": 1, "recipe.peak_lr": 0.003}, 0),
    ({"optimizer.name": "muon", "optimizer.z_loss": 1e-4, "budget.n_tokens": 10_240}, 0),
    ({"model.rope_base": 500.0, "model.tied_head": True, "model.init": "fixed"}, 0),
    ({"model.parametrization": "mup", "model.base_d_model": 16}, 0),
    ({"model.ff_ratio": 3.99}, 0),  # rounded up to the same width
    ({"model.ff_ratio": 2.0}, 2),
    ({"model.d_model": 48}, 2),
    ({"model.d_head": 16}, 2),
    ({"recipe.batch_tokens": 512}, 1),  # the evaluation is the same
    ({"recipe.batch_tokens": 512, "runtime.micro_batch_tokens": 256}, 0),
    ({"runtime.micro_batch_tokens": 96}, 2),  # passes of 3, 3 and 2 rows
    ({"evaluation.n_tokens": 1024}, 1),
    ({"evaluation.n_tokens": 2048}, 0),  # in two passes
    ({"seq_len.seq_len": 64}, 2),
    (WARMED, 2),  # rows of 8 and 16 tokens, then 32 as before
    (WINDOW, 1),  # any window has one graph, no window the one from before
    ({"model.qk_norm": True}, 2),
    ({"model.bias": True}, 2),
    ({"model.norm": "layernorm"}, 2),
    ({"model.activation": "swiglu"}, 2),
    ({"model.dropout": 0.1}, 2),
    ({"runtime.activation_checkpointing": True}, 0),
    ({"runtime.dtype": "bfloat16"}, 2),
    ({"runtime.attention": "math"}, 2),
    (GPT2, 2),
]


@pytest.fixture(autouse=True)
def _traced_alone(monkeypatch):
    """Trace blocks without making code of them: what is counted comes before that."""
    quick = functools.partialmethod(torch.nn.Module.compile, backend="eager")
    monkeypatch.setattr(Block, "compile", quick, raising=False)
    monkeypatch.setattr(spec_graphs, "EVAL_TOKENS", 1024)
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def made_graphs(made):
    """Do a warm-up and return how many graphs there are since the beginning."""
    for _ in made:
        pass
    return counters["stats"]["unique_graphs"]


def test_equal_graphs_add_no_compilation_and_unequal_ones_do(make, corpus):
    known = set()
    for changes, n_new in CASES:
        session = new_session(make, corpus, changes | {"runtime.compile": True})
        new = graphs(session.config, session.plan) - known
        assert len(new) == n_new, changes
        known |= new
        assert made_graphs(warm_up(session)) == len(known), changes
        session.train_step()
        session.evaluate()
        assert counters["stats"]["unique_graphs"] == len(known), changes


def test_a_stack_has_graphs_of_its_own_size(make, corpus):
    known = set()
    for n_runs, depth, n_new in ((2, 2, 2), (2, 4, 0), (3, 2, 1), (1, 2, 1)):
        changes = {"runtime.compile": True, "model.n_layers": depth}
        sessions = [new_session(make, corpus, changes | {"seed": i}) for i in range(n_runs)]
        new = graphs(sessions[0].config, sessions[0].plan, n_runs=n_runs) - known
        assert len(new) == n_new
        known |= new
        stack = Stack(sessions) if n_runs > 1 else None
        assert made_graphs(stack.warm_up() if stack else warm_up(sessions[0])) == len(known)
