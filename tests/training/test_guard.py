"""Faults planted in loss, gradients, weights and activations: none of them moves a weight."""

import copy
import json
import math
import os
import random
import signal

import pytest
import torch
from setups import new_session

from llmtrain.spec.errors import DivergedError, InterruptedRunError
from llmtrain.spec.record import read_record
from llmtrain.spec.rundir import read_state, run_directory
from llmtrain.training import energy, guard
from llmtrain.training.guard import RollBack
from llmtrain.training.loop import train
from llmtrain.training.session import Session

CPU = torch.device("cpu")
N_STEPS = 20
WEIGHT = "blocks.1.mlp.down.weight"


@pytest.fixture
def on_device(monkeypatch):
    """Let the fused kernels decide, as on a GPU; torch's fused CPU kernels know `found_inf` too."""
    is_adam = torch.optim.Adam
    monkeypatch.setattr(guard, "decides_on_device", lambda rule, _device: isinstance(rule, is_adam))


def plant_in_loss(session, backward, stage, value):
    return backward(stage) * value


def plant_in_gradient(session, backward, stage, value):
    loss = backward(stage)
    weight = session.model.get_parameter(WEIGHT)
    weight.grad[1, 2] = value
    return loss


def plant_in_weight(session, backward, stage, value):
    with torch.no_grad():
        session.model.get_parameter(WEIGHT)[1, 2] = value
    return backward(stage)


def plant_in_batch(session, backward, stage, value):
    """Poison what the embedding gives for one token of the batch."""

    def poison(_module, _inputs, out):
        return out + torch.zeros_like(out).index_fill_(1, torch.tensor([3]), value)

    hook = session.model.get_submodule("embedding").register_forward_hook(poison)
    loss = backward(stage)
    hook.remove()
    return loss


def planted(plant, value):
    """Return Session._backward with a fault in it."""
    plain = Session._backward
    return lambda session, stage, *batch: plant(
        session, lambda s: plain(session, s, *batch), stage, value
    )


PLANTS = [plant_in_loss, plant_in_gradient, plant_in_weight, plant_in_batch]


@pytest.fixture
def fault(monkeypatch):
    """Return a function that plants a fault in chosen steps, from 0, `times` times in all."""

    def at(steps, plant=plant_in_batch, value=math.nan, times=10**9):
        plain, faulty, left = Session._backward, planted(plant, value), [times]

        def backward(session, stage, *batch):
            if session.step not in steps or left[0] == 0:
                return plain(session, stage, *batch)
            left[0] -= 1
            return faulty(session, stage, *batch)

        monkeypatch.setattr(Session, "_backward", backward)

    return at


def bits(state):
    """Return nested tensors as exact bytes: NaN equals NaN here."""
    if isinstance(state, torch.Tensor):
        return state.detach().clone().numpy().tobytes()
    if isinstance(state, dict):
        return {k: bits(v) for k, v in state.items()}
    return [bits(v) for v in state] if isinstance(state, list | tuple) else state


def snapshot(session):
    """Return weights, and moments and step counts but for the zeros that they begin with."""
    rule = session.optimizer.state_dict()
    states = [part["state"] for part in (rule.get("muon", rule), rule.get("adamw", rule))]
    moments = [
        moment
        for state in states
        for values in state.values()
        for moment in values.values()
        if torch.as_tensor(moment).count_nonzero() > 0
    ]
    return bits([session.model.state_dict(), moments])


@pytest.mark.parametrize("where", ["host", "device"])
def test_no_planted_number_moves_a_weight_in_50_random_steps(
    make, corpus, monkeypatch, request, where
):
    rules = ["adamw", "adam"] if where == "device" else ["adamw", "adam", "muon", "nadam"]
    if where == "device":
        request.getfixturevalue("on_device")
    rng = random.Random(where)
    prevented = 0
    for draw in range(50):
        step, plant = rng.randrange(N_STEPS - 1), PLANTS[draw % len(PLANTS)]
        value = rng.choice([math.nan, math.inf, -math.inf])
        policy = rng.choice(["stop", "skip", "rollback"])
        changes = {"optimizer.name": rng.choice(rules), "guard.on_nonfinite": policy}
        session = new_session(make, corpus, changes | {"model.d_model": 16})
        assert session.guard.on_device == (where == "device")
        for _ in range(step):
            session.train_step()
        with monkeypatch.context() as patch:
            patch.setattr(Session, "_backward", planted(plant, value))
            if plant is plant_in_weight:  # the fault itself, not what came of it
                plant(session, lambda _stage: None, None, value)
            before = snapshot(session)
            session.train_step()
        prevented += snapshot(session) == before
        assert session.step == step + 1
        expected = {"stop": DivergedError, "rollback": RollBack}.get(policy)
        if expected is None:
            session.check_step(wait=True)
            session.drain_losses()
            assert session.guard.n_skipped == 1
        else:
            with pytest.raises(expected, match=f"step {step + 1}: .*; its update was held back"):
                session.check_step(wait=True)
    assert prevented == 50


def test_after_a_fault_the_device_holds_back_all_later_steps_until_the_host_looks(
    make, corpus, fault, on_device
):
    session = new_session(make, corpus, {})
    fault({4})
    for _ in range(4):
        session.train_step()
    before = bits(session.model.state_dict())
    for _ in range(5):
        session.train_step()
        session.check_step()  # the host does not wait, so it cannot know yet
    assert bits(session.model.state_dict()) == before
    with pytest.raises(DivergedError, match=r"^step 5: a loss or gradient norm that is not finite"):
        session.drain_losses()


@pytest.fixture
def run(make, corpus, tmp_path):
    """Return a function that trains the tiny run with changes: (record, directory)."""

    def go(changes=None, *, root="runs", **hooks):
        changes = {"checkpoint.every_steps": 1, "tracking.points": 5} | (changes or {})
        config = make({"runs_root": str(tmp_path / root)} | changes)
        return train(config, corpus, **hooks), run_directory(config)

    return go


def result(record):
    return record.val_loss, record.train_loss, record.n_skipped


def rows(directory):
    """Return the metrics without what the clock and the machine put into them."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    timed = ("train/tokens_per_second", "train/memory_gb")
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


@pytest.mark.parametrize("plant", PLANTS)
def test_stop_ends_the_run_in_that_step_as_failed_with_its_reason(
    run, make, fault, tmp_path, plant
):
    fault({6}, plant, math.inf)
    with pytest.raises(DivergedError, match=r"^step 7: .*lower recipe\.lr_multiplier"):
        run()
    directory = run_directory(make({"runs_root": str(tmp_path / "runs")}))
    state, reason = read_state(directory)
    assert (state, reason[:6]) == ("failed", "step 7")
    assert (f"{WEIGHT} is not finite" in reason) == (plant is plant_in_weight)
    assert read_record(directory) is None
    newest = sorted(path.name for path in (directory / "checkpoints").iterdir())[-1]
    assert newest == "step-000000006"  # nothing was saved behind the fault


@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_a_skipped_step_is_a_step_taken_back_and_no_more(make, corpus, run, fault, rule):
    changes = {"optimizer.name": rule}
    truth = new_session(make, corpus, changes)
    for step in range(N_STEPS):
        before = copy.deepcopy([truth.model.state_dict(), truth.optimizer.state_dict()])
        truth.train_step()
        if step == 6:
            truth.model.load_state_dict(before[0])
            truth.optimizer.load_state_dict(before[1])
    fault({6})
    record, directory = run(changes | {"guard.on_nonfinite": "skip"})
    assert record.val_loss == truth.evaluate().loss
    assert record.n_skipped == 1
    assert record.n_tokens == N_STEPS * record.batch_tokens  # those of the skipped step were read
    assert rows(directory)[-2]["train/skipped_steps"] == 1


def test_a_resumed_run_knows_what_was_skipped_before(run, fault):
    fault({6, 15})
    changes = {"guard.on_nonfinite": "skip", "guard.max_skips": 2, "tracking.points": 20}
    whole, _ = run(changes, root="whole")
    for step in (6, 8, 16):

        def stop(progress, at=step):
            if progress.step == at:
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(InterruptedRunError):
            run(changes, root="parts", on_progress=stop)
    parts, directory = run(changes, root="parts")
    assert result(parts) == result(whole)
    assert rows(directory) == rows(directory.parents[2] / "whole" / "test" / directory.name)
    with pytest.raises(DivergedError, match="2 of the first 16 updates were held back"):
        run(changes | {"guard.max_skips": 1}, root="fewer")


def test_going_back_after_a_passing_fault_equals_a_run_without_it(run, fault, capfd):
    expected, whole = run(root="whole")
    fault({7}, plant_in_weight, times=1)
    record, directory = run({"guard.on_nonfinite": "rollback"}, root="back")
    assert result(record) == result(expected)
    assert rows(directory) == rows(whole)
    (line,) = capfd.readouterr().err.splitlines()
    assert "step 8: " in line
    assert line.endswith("back to the newest checkpoint")


@pytest.mark.parametrize("every", [1, 3, 100])  # 100: no checkpoint, the run begins anew
def test_going_back_after_a_lasting_fault_equals_skipping_it(run, fault, every):
    fault({7})
    expected, skipped = run({"guard.on_nonfinite": "skip"}, root="skip")
    changes = {"guard.on_nonfinite": "rollback", "checkpoint.every_steps": every}
    record, directory = run(changes, root="back")
    assert result(record) == result(expected)
    assert record.n_skipped == 1
    assert rows(directory) == rows(skipped)


def test_what_was_undone_was_paid_for_all_the_same(run, fault, monkeypatch):
    taken = []

    class Counter:
        source = "rapl"

        def take(self):
            taken.append(10.0)
            return 10.0

    monkeypatch.setattr(energy, "_counter", lambda _device: Counter())
    whole, _ = run(root="whole")
    assert whole.seconds["undone"] == 0.0
    taken.clear()
    fault({7}, plant_in_weight, times=1)
    changes = {"guard.on_nonfinite": "rollback", "checkpoint.every_steps": 5, "tracking.points": 20}
    record, _ = run(changes, root="back")
    assert record.energy_j == sum(taken)
    assert record.seconds["undone"] > 0.0


def test_a_weight_that_no_loss_shows_is_found_before_it_is_saved(run, monkeypatch):
    step = Session.train_step

    def rot(session):
        step(session)
        if session.step == 4:
            with torch.no_grad():  # of a token that no text has
                session.model.get_parameter("embedding.weight")[255] = math.inf

    monkeypatch.setattr(Session, "train_step", rot)
    with pytest.raises(DivergedError, match=r"^after step 4: embedding.weight is not finite"):
        run()
    with pytest.raises(DivergedError, match=r"^after step 20: embedding.weight is not finite"):
        run({"checkpoint.every_steps": None}, root="unsaved")


def test_a_spike_is_counted_or_ends_the_run_and_the_count_survives_a_stop(run, monkeypatch):
    backward = Session._backward

    def spiky(session, stage, *batch):
        return backward(session, stage, *batch) + (3.0 if session.step == 130 else 0.0)

    monkeypatch.setattr(Session, "_backward", spiky)
    long = {
        "budget.n_tokens": 160 * 256,
        "checkpoint.every_steps": None,
        "tracking.points": 32,
        "model.n_layers": 1,
        "model.d_model": 16,
    }
    whole, directory = run(long, root="whole")
    assert whole.n_spikes == 1
    assert [row.get("train/spikes", 0) for row in rows(directory)[-2:]] == [1, 0]

    def stop(progress):
        if progress.step == 120:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(InterruptedRunError):
        run(long, root="parts", on_progress=stop)
    assert run(long, root="parts")[0].n_spikes == 1
    with pytest.raises(DivergedError, match=r"^step 131: loss .* standard deviations above"):
        run(long | {"guard.on_spike": "stop"}, root="stop")


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_more_faults_than_allowed_are_a_divergence(run, fault, policy):
    fault({5, 9, 13})
    changes = {"guard.on_nonfinite": policy, "guard.max_skips": 3}
    assert run(changes, root="allowed")[0].n_skipped == 3
    with pytest.raises(DivergedError, match=r"lower recipe\.lr_multiplier"):
        run(changes | {"guard.max_skips": 2}, root="more")
