"""The whole step by the device's own counters: uncaptured, it is the eager step bit for bit."""

import copy
import time
from dataclasses import replace

import pytest
import torch
from setups import WARMED, new_session
from torch.utils._python_dispatch import TorchDispatchMode

from llmtrain.spec.errors import ConfigError
from llmtrain.training import guard
from llmtrain.training.batches import resident
from llmtrain.training.evaluate import Evaluator
from llmtrain.training.loop import train
from llmtrain.training.session import Session
from llmtrain.training.warm import warm_up

CPU = torch.device("cpu")
NAN, PASSES = float("nan"), Session.passes


def session(make, corpus, changes=None, *, whole=False):
    made = new_session(make, corpus, changes)
    if whole:
        made.batches.source.resident = resident(corpus.train, CPU)
        made.whole = made.whole_step()
    return made


def tensors(made):
    """Return copies of the weights and moments."""
    moments = [v for entry in made.optimizer.state.values() for v in entry.values()]
    return [t.detach().clone() for t in [*made.model.parameters(), *moments]]


def assert_equal(one, other):
    assert one.step == other.step
    assert torch.equal(torch.stack(one.recent), torch.stack(other.recent))
    assert torch.equal(one.grad_norm, other.grad_norm)
    for a, b in zip(tensors(one), tensors(other), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer.name": "adam", "optimizer.grad_clip": None},
        {"runtime.micro_batch_tokens": 96, "runtime.activation_checkpointing": True},
        {"model.parametrization": "mup", "model.base_d_model": 8, "schedule.name": "wsd"},
        WARMED,
        WARMED | {"seq_len.mode": "truncate"},
        WARMED | {"seq_len.mode": "window"},
        {"data.max_epochs": 9.0, "budget.n_tokens": 256_000},
    ],
    ids=str,
)
def test_the_whole_step_is_the_eager_step(make, corpus, changes):
    eager, whole = session(make, corpus, changes), session(make, corpus, changes, whole=True)
    last = eager.plan.n_steps
    eager.step = whole.step = max(0, last - 40)  # the end of the longest lies in a later epoch
    while eager.step < last:
        eager.train_step()
        whole.train_step()
    assert_equal(eager, whole)


def test_a_rehearsal_changes_nothing(make, corpus):
    rehearsed, other = (session(make, corpus, WARMED, whole=True) for _ in range(2))
    for _ in range(2):  # before any moment is there, and with moments
        before, random = tensors(rehearsed), torch.get_rng_state()
        n_graphs = sum(1 for _ in warm_up(rehearsed))
        assert n_graphs == len(rehearsed.plan.stages)
        after = tensors(rehearsed)
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=False))
        assert all(not moment.any() for moment in after[len(before) :])
        assert torch.equal(random, torch.get_rng_state())
        for made in (rehearsed, other):
            for _ in range(5):
                made.train_step()
    assert_equal(rehearsed, other)


def test_a_state_goes_on_with_and_without_the_whole_step(make, corpus):
    straight = session(make, corpus)
    one, other = session(make, corpus, whole=True), session(make, corpus)
    for _ in range(6):
        one.train_step()
        straight.train_step()
    other.restore(copy.deepcopy(one.state()))
    one.restore(copy.deepcopy(straight.state()))
    group = one.state()["optimizer"]["param_groups"][0]
    assert isinstance(group["lr"], float)
    for made in (one, other, straight):
        for _ in range(6):
            made.train_step()
    assert_equal(one, straight)
    assert_equal(other, straight)


def decide_on_device(monkeypatch):
    """Let torch's fused kernels drop updates on this CPU, as they do on a GPU."""
    monkeypatch.setattr(
        guard, "decides_on_device", lambda rule, _: isinstance(rule, torch.optim.Adam)
    )


def test_a_whole_step_drops_an_update_by_itself(make, corpus, monkeypatch):
    decide_on_device(monkeypatch)
    skip = {"guard.on_nonfinite": "skip"}
    eager, whole = session(make, corpus, skip), session(make, corpus, skip, whole=True)

    def poisoned(made, stage):
        return [replace(part, weight=NAN) for part in PASSES(made, stage)]

    for made in (eager, whole):
        for _ in range(3):
            made.train_step()
        before = tensors(made)
        with monkeypatch.context() as patch:
            patch.setattr(Session, "passes", poisoned)
            made.train_step()
        assert all(torch.equal(a, b) for a, b in zip(before, tensors(made), strict=True))
        assert made.recent.pop().isnan()
        made.train_step()
    assert_equal(eager, whole)


def test_a_rehearsal_that_meets_a_nan_holds_no_later_step_back(make, corpus, monkeypatch):
    decide_on_device(monkeypatch)
    rehearsed, other = (session(make, corpus, whole=True) for _ in range(2))
    with monkeypatch.context() as patch:
        patch.setattr(
            Session,
            "passes",
            lambda made, stage: [replace(part, weight=NAN) for part in PASSES(made, stage)],
        )
        for _ in warm_up(rehearsed):
            pass
    for made in (rehearsed, other):
        made.train_step()
        assert not made.recent[0].isnan()
    assert_equal(rehearsed, other)


def test_the_rows_of_an_evaluation_lie_on_its_device(corpus):
    device = torch.device("meta")
    made = Evaluator(corpus, n_tokens=512, seq_len=32, device=device)
    assert (made.inputs.device, made.targets.device) == (device, device)
    assert made.n_bytes == 512  # a byte each


class CountReads(TorchDispatchMode):
    """Counts tensors read back by the host: .item(), float(), bool()."""

    n_reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n_reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("changes", "reads_per_step"),
    [
        ({}, 0),
        ({"optimizer.name": "adam"}, 0),
        ({"optimizer.grad_clip": None, "optimizer.z_loss": 1e-4}, 0),
        ({"optimizer.name": "muon"}, 1),  # the guard's: torch's Muon cannot drop an update itself
        ({"runtime.micro_batch_tokens": 96, "model.dropout": 0.1}, 0),
        # NAdam's counters: numbers on the host, three a parameter, of which a GPU knows nothing.
        ({"optimizer.name": "nadam"}, 1 + 3 * 15),
    ],
    ids=str,
)
def test_steps_between_two_rows_wait_for_nothing(
    make, corpus, monkeypatch, changes, reads_per_step
):
    decide_on_device(monkeypatch)
    made = session(make, corpus, changes)
    made.train_step()
    assert len(list(made.model.parameters())) == 15
    with CountReads() as reads:
        for _ in range(4):
            made.train_step()
    assert reads.n_reads == 4 * reads_per_step
    with CountReads() as reads:
        made.drain_losses()
    assert reads.n_reads > 0


def test_what_a_row_waits_for_is_the_time_of_its_steps(make, corpus, monkeypatch):
    made, clocks = session(make, corpus), []
    made.train_step()
    monkeypatch.setattr("llmtrain.training.session.wait_for", lambda _device: time.sleep(0.2))
    check = Session.check_step

    def check_step(self, *, wait=False):
        clocks.append(self.seconds["train"])  # on a GPU this reads a number, and so would wait
        check(self, wait=wait)

    monkeypatch.setattr(Session, "check_step", check_step)
    before = made.seconds["train"]
    made.drain_losses()
    assert clocks[0] - before > 0.19


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, "runtime.device=cpu"),
        ({"runtime.device": "cuda", "model.dropout": 0.1}, "model.dropout=0.1"),
        ({"runtime.device": "auto", "optimizer.name": "muon"}, "optimizer.name=muon"),
        ({"runtime.device": "cuda", "runtime.parallel": "ddp"}, "runtime.parallel=ddp"),
    ],
    ids=str,
)
def test_a_graph_is_refused_by_the_setting_that_forbids_it(make, changes, named):
    with pytest.raises(ConfigError, match=rf"runtime.cuda_graph=on .* {named}"):
        make({"runtime.cuda_graph": "on"} | changes)
    make({"runtime.cuda_graph": "auto"} | changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_graph_is_refused_without_a_gpu_and_auto_does_without(make, corpus, tmp_path):
    wanted = {"runtime.device": "auto", "runs_root": str(tmp_path / "runs")}
    with pytest.raises(ConfigError, match=r"torch sees no GPU; use runtime.cuda_graph=off"):
        train(make(wanted | {"runtime.cuda_graph": "on"}), corpus)
    with pytest.raises(ConfigError, match=r"torch sees no GPU; use runtime.device=auto"):
        train(make(wanted | {"runtime.device": "cuda"}), corpus)
    assert not (tmp_path / "runs").exists()
    assert session(make, corpus, wanted | {"runtime.cuda_graph": "auto"}).whole is None
