"""A run end to end: what it learns, what it leaves, and that stopping changes nothing."""

import dataclasses
import json
import math
import random
import signal

import numpy as np
import pytest
import torch
from setups import new_session
from stops import Stop
from torch.nn.attention import _cur_sdpa_kernel_backends
from torch.utils._python_dispatch import TorchDispatchMode

from llmtrain.spec.errors import (
    CheckpointError,
    ConfigError,
    DivergedError,
    InterruptedRunError,
    MismatchError,
)
from llmtrain.spec.record import read_record
from llmtrain.spec.rundir import read_state, run_directory
from llmtrain.training import batches
from llmtrain.training.layers import KERNELS, kernels
from llmtrain.training.loop import train

CPU = torch.device("cpu")


@pytest.fixture
def run(make, corpus, tmp_path):
    """Return a function that trains the tiny run with changes and returns (record, directory)."""

    def go(changes=None, *, root="runs", **hooks):
        config = make({"runs_root": str(tmp_path / root)} | (changes or {}))
        return train(config, corpus, **hooks), run_directory(config)

    return go


@pytest.fixture
def directory(make, tmp_path):
    """Return a function that says where such a run lives, finished or not."""

    def where(changes=None, *, root="runs"):
        return run_directory(make({"runs_root": str(tmp_path / root)} | (changes or {})))

    return where


def rows(directory):
    """Return the metrics without what the clock and the machine put into them."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    timed = ("train/tokens_per_second", "train/memory_gb")
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def test_a_run_learns_and_leaves_its_record_last(run):
    record, directory = run({"budget.n_tokens": 25_600})
    assert record.val_loss < 2.5 < math.log(256)
    assert read_record(directory) == record
    assert read_state(directory) == ("done", None)
    assert record.n_tokens == 25_600 == record.n_steps * record.batch_tokens
    assert rows(directory)[-1]["val/loss"] == record.val_loss
    assert rows(directory)[-1]["flops"] == pytest.approx(record.flops["full_attention"])
    # One byte a token, but for the separators, which stand for no text.
    bits = record.val_loss / math.log(2)
    assert bits <= record.val_bpb < 1.01 * bits


def test_a_finished_run_is_not_trained_again(run):
    record, directory = run()
    before = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    again, _ = run()
    assert again == record
    after = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    assert {k: v for k, v in before.items() if k.name != "lock"} == {
        k: v for k, v in after.items() if k.name != "lock"
    }


def test_every_signal_saves_and_leaves(run):
    for number in (signal.SIGINT, signal.SIGUSR1):
        name = signal.Signals(number).name
        with pytest.raises(InterruptedRunError, match=name) as caught:
            run(root=name, on_progress=Stop(3, number))
        assert caught.value.exit_code == 75


def test_accumulation_equals_one_big_batch(make, corpus):
    whole = new_session(make, corpus)
    parts = new_session(make, corpus, {"runtime.micro_batch_tokens": 96})  # 8 rows as 3 + 3 + 2
    for one in (whole, parts):
        one.train_step()
    assert parts.drain_losses() == pytest.approx(whole.drain_losses(), rel=1e-6)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6)


def test_the_logged_loss_is_the_batch_mean_before_the_step(make, corpus):
    one = new_session(make, corpus)
    inputs, targets = one.batches.at(0)
    with torch.no_grad():
        logits = one.model(inputs).double()
    by_hand = -logits.log_softmax(-1).gather(-1, targets[..., None]).mean()
    one.train_step()
    assert one.drain_losses() == pytest.approx(float(by_hand), rel=1e-5)
    assert float(by_hand) == pytest.approx(math.log(256), abs=0.1)


def test_every_mode_reads_the_same_text_in_the_same_order(make, corpus):
    warm = {"seq_len.pacing": "discrete", "seq_len.warmup_fraction": 0.5, "budget.tolerance": 0.1}
    plain = new_session(make, corpus)
    for mode in ("reshape", "truncate", "window"):
        other = new_session(make, corpus, warm | {"seq_len.mode": mode})
        full, _ = plain.batches.at(0)
        short, targets = other.batches.at(0)
        if mode == "truncate":
            assert torch.equal(short, full[:, :8])
        else:
            assert torch.equal(short.flatten(), full.flatten())
        stream = np.concatenate([short.numpy().ravel()[1:8], targets.numpy().ravel()[7:8]])
        assert np.array_equal(stream, targets.numpy().ravel()[:8])  # targets are the next tokens


@pytest.mark.parametrize("mode", ["reshape", "truncate", "window"])
def test_a_batch_does_not_depend_on_what_was_read_before(make, corpus, monkeypatch, mode):
    warm = {"seq_len.pacing": "discrete", "seq_len.warmup_fraction": 0.5, "budget.tolerance": 0.1}
    one = new_session(make, corpus, warm | {"seq_len.mode": mode})
    n_steps, length = one.plan.n_steps, one.plan.block_len
    steps = [*range(n_steps), *random.Random(0).choices(range(n_steps), k=50)]
    monkeypatch.setattr(batches, "AHEAD_TOKENS", 3 * one.plan.batch_tokens)
    for step in steps:
        stage = one.plan.shape_at(step)
        inputs, targets = one.batches.at(step)
        starts = one.batches.order.starts(step * one.batches.blocks, one.batches.blocks)
        blocks = [corpus.train[start : start + length + 1].astype(np.int64) for start in starts]
        if mode == "truncate":
            blocks = [block[: stage.row_len + 1] for block in blocks]
        assert inputs.shape == targets.shape == (stage.rows, stage.row_len)
        assert inputs.flatten().tolist() == np.concatenate([b[:-1] for b in blocks]).tolist()
        assert targets.flatten().tolist() == np.concatenate([b[1:] for b in blocks]).tolist()


def test_evaluation_does_not_move_training(run):
    record, _ = run({"model.dropout": 0.2}, root="once")
    often, _ = run({"model.dropout": 0.2, "evaluation.points": 10}, root="often")
    assert often.val_loss == record.val_loss


def test_another_seed_gives_another_run(run):
    losses = {run({"seed": seed})[0].val_loss for seed in (0, 1)}
    assert len(losses) == 2


def test_divergence_is_final_and_named(run, directory):
    wild = {"recipe.peak_lr": 1e30, "optimizer.grad_clip": None}
    with pytest.raises(DivergedError, match=r"lower recipe\.lr_multiplier"):
        run(wild)
    state, reason = read_state(directory(wild))
    assert state == "failed"
    assert "gradient norm" in reason
    assert read_record(directory(wild)) is None


def test_output_that_nobody_reads_says_nothing_against_the_run(run, directory):
    def closed(_progress):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run(on_progress=closed)
    assert read_state(directory())[0] == "stopped"


def test_a_damaged_checkpoint_is_passed_over_and_named(run, directory, capfd):
    changes = {"checkpoint.every_steps": 2, "tracking.points": 1000, "checkpoint.keep": 9}
    with pytest.raises(InterruptedRunError):
        run(changes, on_progress=Stop(7))
    whole, _ = run(changes, root="whole")
    found = sorted((directory(changes) / "checkpoints").glob("step-*"))
    assert [path.name[-1] for path in found] == ["2", "4", "6", "7"]
    newest = found[-1] / "tensors.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    resumed, _ = run(changes)
    (line,) = capfd.readouterr().err.splitlines()
    assert (
        "step-000000007: tensors.safetensors does not match its hash in manifest.json; passed over"
        in line
    )
    assert resumed.val_loss == whole.val_loss


def test_only_damaged_checkpoints_are_an_error_not_a_fresh_start(run, directory):
    with pytest.raises(InterruptedRunError):
        run(on_progress=Stop(5))
    (only,) = (directory() / "checkpoints").glob("step-*")
    (only / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"state\.json does not match its hash"):
        run()


def test_data_that_changed_since_are_refused(make, corpus, tmp_path):
    config = make({"runs_root": str(tmp_path)})
    train(config, corpus)
    manifest = dataclasses.replace(corpus.manifest, text_sha256="0" * 64)
    with pytest.raises(MismatchError, match="was trained on data"):
        train(config, dataclasses.replace(corpus, manifest=manifest))


def test_a_sample_is_written_and_continues_the_validation_text(run, corpus):
    _, directory = run({"evaluation.sample_tokens": 50})
    text = (directory / "sample.txt").read_text()
    beginning = bytes(corpus.val[:32].astype("uint8")).decode()
    assert text.startswith(beginning)
    assert len(text) >= len(beginning) + 40


class Kernels(TorchDispatchMode):
    """Notes the attention kernels that are called."""

    def __init__(self):
        super().__init__()
        self.called = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "softmax" in str(func) or "attention" in str(func):
            self.called.add(str(func).partition(".")[2])
        return func(*args, **(kwargs or {}))


def test_the_attention_kernel_is_the_one_asked_for(make, corpus):
    losses = {}
    for name in ("auto", "flash", "math"):
        one = new_session(make, corpus, {"runtime.attention": name})
        with Kernels() as kernels:
            one.train_step()
            losses[name] = [one.drain_losses(), one.evaluate().loss]
        fused = {name for name in kernels.called if name.startswith("_scaled_dot_product")}
        assert bool(fused) == (name != "math")
    assert losses["flash"] == losses["auto"]
    assert losses["math"] == pytest.approx(losses["auto"], rel=1e-6)


def test_the_kernel_asked_for_comes_first_and_torchs_order_comes_back():
    before = _cur_sdpa_kernel_backends(with_priority=True)
    for name, kernel in KERNELS.items():
        with kernels(name):
            order = _cur_sdpa_kernel_backends(with_priority=True)
        assert order[0] == kernel
        assert set(order) == ({kernel} if name == "math" else set(KERNELS.values()))
        assert _cur_sdpa_kernel_backends(with_priority=True) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_gpus_kernel_is_refused_without_one(run, tmp_path):
    with pytest.raises(ConfigError, match=r"attention=cudnn, .* use runtime.attention=auto"):
        run({"runtime.attention": "cudnn"})
