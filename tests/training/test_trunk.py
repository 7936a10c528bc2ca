"""A branch is the run that it would have been alone, bit for bit, however it was interrupted."""

import dataclasses
import json
import random
import shutil

import pytest
import torch
from damage import cut, flip, zero
from safetensors.torch import load_file
from stops import Stop

from llmtrain.spec.branching import branch_step, share_trunk
from llmtrain.spec.errors import (
    CheckpointError,
    ConfigError,
    InterruptedRunError,
    MismatchError,
    RunLockedError,
)
from llmtrain.spec.plan import plan_run
from llmtrain.spec.rundir import hold, run_directory, write_state
from llmtrain.training.loop import train
from llmtrain.training.trunk import starting_state

PLAIN = {
    "schedule.name": "wsd",
    "recipe.warmup_tokens": 1024,
    "tracking.points": 7,
    "budget.tolerance": 0.05,
}
WARMED = PLAIN | {
    "seq_len.pacing": "linear",
    "seq_len.warmup_tokens": 3072,
    "model.dropout": 0.1,
    "schedule.cooldown_shape": "linear",
}


@pytest.fixture
def family(make, tmp_path):
    """Return a function that makes a trunk of 40 steps with branches at 24 and 30, in a folder."""

    def make_family(changes=None, *, root="shared", every=None):
        runs = []
        for n_tokens in (10_240, 6_144, 7_680):
            given = {"budget.n_tokens": n_tokens, "runs_root": str(tmp_path / root)}
            config = make(PLAIN | (changes or {}) | given | {"checkpoint.every_steps": every})
            runs.append((config, plan_run(config, vocab_size=256, unique_tokens=None)))
        shared, refused = share_trunk(runs, unique_tokens=None)
        assert not refused
        return [config for config, _ in shared]

    return make_family


def alone(config, root):
    """Return the same run with nothing shared, elsewhere."""
    checkpoint = dataclasses.replace(config.checkpoint, branch_at=(), branch_from=None)
    return dataclasses.replace(config, checkpoint=checkpoint, runs_root=str(root))


def step_of(config):
    return branch_step(config, plan_run(config, vocab_size=256, unique_tokens=None))


def rows(config):
    text = (run_directory(config) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def last_weights(config):
    newest = sorted((run_directory(config) / "checkpoints").glob("step-*"))[-1]
    return newest.name, load_file(newest / "tensors.safetensors")


@pytest.mark.parametrize(
    "changes", [PLAIN, WARMED, PLAIN | {"optimizer.name": "muon"}], ids=["plain", "warmed", "muon"]
)
def test_a_branch_is_its_run_alone_bit_for_bit(family, corpus, tmp_path, changes):
    trunk, *branches = family(changes, every=4)
    records = [train(config, corpus) for config in (trunk, *branches)]
    for config, record in zip((trunk, *branches), records, strict=True):
        lonely = alone(config, tmp_path / "alone")
        expected = train(lonely, corpus)
        assert record.val_loss == expected.val_loss
        assert record.train_loss == expected.train_loss
        assert record.run_id == expected.run_id
        assert record.flops == expected.flops
        assert record.n_tokens == expected.n_tokens
        (name, found), (its_name, its) = last_weights(config), last_weights(lonely)
        assert name == its_name
        for key in found.keys() | its.keys():  # but for the losses that wait for the next row
            assert "/recent/" in key or torch.equal(found[key], its[key]), key
        assert expected.trunk is None
        assert record.trunk == records[0].run_id
        spent = record.flops["full_attention"]
        if config is not trunk:
            share = 1 - step_of(config) / record.n_steps
            assert share == pytest.approx(config.schedule.cooldown_fraction, abs=0.05)
            assert record.flops_spent < (share + 0.03) * spent
        else:
            assert record.flops_spent == pytest.approx(spent)


def test_a_branchs_metrics_begin_with_its_trunks(family, corpus):
    trunk, branch, _ = family()
    train(trunk, corpus)
    train(branch, corpus)
    step = step_of(branch)
    before = [row for row in rows(branch) if row["step"] <= step]
    assert before == [row for row in rows(trunk) if row["step"] <= step]
    steps = [row["step"] for row in rows(branch)]
    assert steps == sorted(steps)
    assert steps[-1] == 30


def test_an_interrupted_trunk_and_an_interrupted_branch_end_as_uninterrupted(
    family, corpus, tmp_path
):
    trunk, branch, other = family(WARMED | {"tracking.points": 1000}, every=5)
    first = min(trunk.checkpoint.branch_at)
    for step in (3, first + 2):
        with pytest.raises(InterruptedRunError):
            train(trunk, corpus, on_progress=Stop(step))
    # The trunk is not done, but its first state is there: that branch can go already.
    early = min((branch, other), key=step_of)
    with pytest.raises(InterruptedRunError):
        train(early, corpus, on_progress=Stop(step_of(early) + 1))
    shutil.rmtree(run_directory(trunk) / "checkpoints")  # sent back to its beginning
    kept = run_directory(trunk) / "branches" / f"step-{first:09d}" / "tensors.safetensors"
    before = kept.stat().st_mtime_ns
    for config in (trunk, branch, other):
        record = train(config, corpus)
        assert record.val_loss == train(alone(config, tmp_path / "alone"), corpus).val_loss
    assert kept.stat().st_mtime_ns == before  # the same state again: left as it was


def test_retention_leaves_the_states_for_branches(family, corpus):
    trunk, *_ = family({"checkpoint.keep": 1}, every=4)
    train(trunk, corpus)
    folder = run_directory(trunk)
    assert len(list((folder / "checkpoints").iterdir())) == 1
    kept = sorted(path.name for path in (folder / "branches").iterdir())
    assert kept == [f"step-{step:09d}" for step in trunk.checkpoint.branch_at]
    assert len(kept) == 2


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"recipe.peak_lr": 0.02}, {"model.dropout": 0.1}, "data", "format"]
)
def test_a_state_of_another_prefix_is_never_used(family, corpus, monkeypatch, changes):
    trunk, branch, _ = family()
    foreign = trunk
    if changes == "data":
        manifest = dataclasses.replace(corpus.manifest, text_sha256="0" * 64)
        train(trunk, dataclasses.replace(corpus, manifest=manifest))
    elif changes == "format":
        with monkeypatch.context() as patch:
            patch.setattr("llmtrain.spec.branching.FORMAT", 0)
            train(trunk, corpus)
    else:
        foreign = family(changes)[0]
        train(foreign, corpus)
        shutil.copytree(run_directory(foreign), run_directory(trunk))
    with pytest.raises(MismatchError, match=r"belongs to run .* it is not used"):
        train(branch, corpus)
    assert not (run_directory(branch) / "record.json").exists()


def test_a_branch_without_its_state_waits_fails_or_trains_all_of_it(
    family, corpus, tmp_path, capfd
):
    trunk, branch, other = family()
    with pytest.raises(CheckpointError, match="is not trained; train that one first"):
        train(branch, corpus)
    waits = pytest.raises(RunLockedError, match="waits for step-000000024 of its trunk")
    with hold(run_directory(trunk)), waits:
        train(branch, corpus)
    for state in ("failed", "quarantined"):
        write_state(run_directory(trunk), state, "why")
        with pytest.raises(CheckpointError, match=f"{state}: why; run the sweep again"):
            train(branch, corpus)
    train(trunk, corpus)
    damaged = run_directory(trunk) / "branches" / f"step-{step_of(branch):09d}" / "state.json"
    damaged.write_text("{}")
    said = r"state\.json does not match its hash in manifest\.json; remove it"
    with pytest.raises(CheckpointError, match=said):
        train(branch, corpus)
    shutil.rmtree(run_directory(trunk) / "branches")
    record = train(other, corpus)
    assert "is done and kept no step-" in capfd.readouterr().err
    assert record.flops_spent == pytest.approx(record.flops["full_attention"])
    assert record.trunk == run_directory(trunk).name  # as correlated as if it had been shared
    assert record.val_loss == train(alone(other, tmp_path / "alone"), corpus).val_loss


@pytest.mark.parametrize("count", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_no_damage_to_a_trunks_state_reaches_a_branch(family, corpus, count):
    trunk, branch, _ = family({"model.d_model": 16, "model.n_layers": 1})
    train(trunk, corpus)
    plan = plan_run(branch, vocab_size=256, unique_tokens=None)
    kept = run_directory(trunk) / "branches" / f"step-{step_of(branch):09d}"
    files = sorted(kept.iterdir())
    sound = {path: path.read_bytes() for path in files}
    rng = random.Random(count)
    while count:
        path = rng.choice(files)
        rng.choice([flip, cut, zero, lambda path, _: path.unlink()])(path, rng)
        if not path.is_file() or path.read_bytes() != sound[path]:
            count -= 1
            with pytest.raises((CheckpointError, MismatchError), match=path.name) as caught:
                starting_state(branch, plan, corpus.manifest.data_id)
            assert "\n" not in str(caught.value)
        path.write_bytes(sound[path])
    assert starting_state(branch, plan, corpus.manifest.data_id) is not None


def test_a_state_from_the_cooldown_is_refused_before_any_file(make, corpus, tmp_path):
    config = make(PLAIN | {"runs_root": str(tmp_path), "checkpoint.branch_at": [17]})
    with pytest.raises(ConfigError, match="lies in the cooldown, which begins after step 16"):
        train(config, corpus)
    assert not list(tmp_path.iterdir())
