"""Runs that several test files train."""

from llmtrain.spec.plan import plan_run
from llmtrain.training.runtime import pick_device
from llmtrain.training.session import Session

GPT2 = {
    "model.activation": "gelu",
    "model.norm": "layernorm",
    "model.position": "learned",
    "model.tied_head": True,
    "model.bias": True,
    "model.init": "fixed",
}
WARMED = {
    "seq_len.pacing": "linear",
    "seq_len.warmup_fraction": 0.5,
    "budget.n_tokens": 10_240,
    "budget.tolerance": 0.05,
}


def new_session(make, corpus, changes=None):
    """Return a session of the tiny run with changes, at step 0."""
    config = make(changes)
    plan = plan_run(config, vocab_size=256, unique_tokens=len(corpus.train))
    return Session(config, plan, corpus, pick_device(config.runtime))
