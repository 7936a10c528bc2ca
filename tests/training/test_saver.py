"""Saves beside the steps: the files of one they wait for, one at a time, none left alone."""

import threading
import time

import pytest
from edge import guarded
from stops import Stop

from llmtrain.spec.errors import CheckpointError, DiskError, InterruptedRunError
from llmtrain.spec.plan import run_id
from llmtrain.spec.rundir import read_state, run_directory
from llmtrain.training import run, runtime, saver, spending
from llmtrain.training.checkpoint import is_sound
from llmtrain.training.guard import RollBack
from llmtrain.training.loop import train
from llmtrain.training.parallel import ALONE, Team
from llmtrain.training.saver import Saver
from llmtrain.training.session import Session

EVERY_3 = {
    "model.d_model": 16,
    "model.n_layers": 1,
    "checkpoint.every_steps": 3,
    "checkpoint.keep": 9,
    "tracking.points": 1000,
}
"""20 steps; saves after 3, 6, ... 18."""
IN_TURN = {"checkpoint.background": False}
ENOUGH_S = 300.0
write_checkpoint = saver.write_checkpoint


def savers():
    """Return the threads that save."""
    return [thread for thread in threading.enumerate() if thread.name == "saver"]


@pytest.fixture
def config(make, tmp_path):
    """Return a function that makes a run in a folder of its own."""

    def of(name, changes=None):
        return make(EVERY_3 | {"runs_root": str(tmp_path / name)} | (changes or {}))

    return of


@pytest.fixture
def writes(monkeypatch):
    """Return a function that has something done before every write."""

    def first(action):
        def write(folder, taken, *, step, **rest):
            action(step)
            return write_checkpoint(folder, taken, step=step, **rest)

        monkeypatch.setattr(saver, "write_checkpoint", write)

    return first


@pytest.fixture
def steps(monkeypatch):
    """Return a function that has something done before every step, with the steps done."""
    train_step = Session.train_step

    def first(action):
        def step(session):
            action(session.step)
            train_step(session)

        monkeypatch.setattr(Session, "train_step", step)

    return first


def whole(config):
    """Return the steps of the checkpoints, all of them sound."""
    found = sorted((run_directory(config) / "checkpoints").iterdir())
    assert all(is_sound(path, run_id=run_id(config)) for path in found)
    return [int(path.name.removeprefix("step-")) for path in found]


def test_a_save_beside_the_steps_has_the_bytes_of_one_they_wait_for(
    config, corpus, writes, steps, monkeypatch
):
    monkeypatch.setattr(time, "perf_counter", lambda: 0.0)  # what clocks and machines decide
    monkeypatch.setattr(runtime, "peak_memory_bytes", lambda _device: 0)
    monkeypatch.setattr(spending, "joules_so_far", lambda *_: None)
    in_turn, beside = config("in turn", IN_TURN), config("beside")
    train(in_turn, corpus)
    another_step = threading.Semaphore(0)

    def later(_step):
        assert another_step.acquire(timeout=ENOUGH_S)  # which changes the weights in place

    writes(later)
    steps(lambda done: another_step.release() if done > 3 and done % 3 == 1 else None)
    train(beside, corpus)
    names = {"checkpoints", "metrics.jsonl"}

    def files(config):
        root = run_directory(config)
        paths = [path for path in root.rglob("*") if path.is_file()]
        relative = {path: path.relative_to(root) for path in paths}
        return {str(r): path.read_bytes() for path, r in relative.items() if r.parts[0] in names}

    assert whole(beside) == [3, 6, 9, 12, 15, 18]
    assert files(beside) == files(in_turn)


def test_saves_in_a_row_do_not_overlap(config, corpus, writes):
    lock, begun = threading.Lock(), []

    def alone(step):
        assert lock.acquire(blocking=False)
        begun.append(step)
        time.sleep(0.005)
        lock.release()

    writes(alone)
    each = config("runs", {"checkpoint.every_steps": 1, "checkpoint.keep": 20})
    train(each, corpus)
    assert whole(each) == begun == list(range(1, 20))


@pytest.mark.parametrize("refusal", [DiskError("disk full"), CheckpointError("check the disk")])
def test_what_a_save_is_refused_for_ends_the_run_before_another_step(
    config, corpus, writes, steps, capfd, refusal
):
    taken = []

    def refuse(step):
        if step == 6:
            raise refusal

    def note(done):
        if done == 7:
            for thread in savers():
                thread.join(ENOUGH_S)
        taken.append(done)

    writes(refuse)
    steps(note)
    ends = []
    for how in ({}, IN_TURN):
        taken.clear()
        one = config(f"runs{len(ends)}", how)
        code = guarded(lambda one=one: train(one, corpus) and None)
        ends.append((code, capfd.readouterr().err, read_state(run_directory(one)), whole(one)))
        assert taken[-1] in ((6, 7) if one.checkpoint.background else (5,))
    assert ends[0] == ends[1]
    code, said, state, kept = ends[0]
    assert (code, kept) == (refusal.exit_code, [3])
    assert said == f"{said.partition(': ')[0]}: {refusal}\n"
    assert state == ("stopped" if isinstance(refusal, DiskError) else "failed", str(refusal))


def test_a_signal_waits_for_the_save_under_way_and_for_its_own(config, corpus, writes):
    writes(lambda _step: time.sleep(0.2))
    stopped = config("runs")
    with pytest.raises(InterruptedRunError, match="at step 4 of 20; saved in"):
        train(stopped, corpus, on_progress=Stop(4))
    assert savers() == []
    assert whole(stopped) == [3, 4]


def test_a_refused_save_for_a_signal_is_not_called_saved(config, corpus, writes):
    def refuse(_step):
        raise DiskError("disk full")

    writes(refuse)
    with pytest.raises(DiskError, match="disk full"):
        train(config("runs", {"checkpoint.every_steps": None}), corpus, on_progress=Stop(4))


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("keep_state", {"schedule.name": "wsd", "checkpoint.branch_at": [7]}),
        ("load_checkpoint", {"guard.on_nonfinite": "rollback"}),
        ("write_state", {}),
        ("make_record", {"checkpoint.every_steps": 19}),
    ],
)
def test_nothing_that_needs_the_disk_as_it_is_goes_on_beside_a_save(
    config, corpus, writes, steps, monkeypatch, what, changes
):
    """A state for branches, the way back, the reason of an end, the record."""
    writes(lambda _step: time.sleep(0.2))
    errors = {"load_checkpoint": [RollBack("back")], "write_state": [ValueError()]}
    failures = iter(errors.get(what, []))

    def fail(done):
        if done == 7 and (error := next(failures, None)):
            raise error

    steps(fail)
    owner = run if hasattr(run, what) else run.rundir
    plain, beside = getattr(owner, what), []

    def noted(*given, **named):
        beside.append(savers())
        return plain(*given, **named)

    monkeypatch.setattr(owner, what, noted)
    one = config("runs", changes)
    if what == "write_state":
        with pytest.raises(ValueError, match=r"^$"):
            train(one, corpus)
        assert whole(one) == [3, 6]
    else:
        train(one, corpus)
    assert beside[-1] == []
    assert savers() == []


def test_the_clock_asks_for_no_save_beside_another(config, tmp_path, writes):
    gate = threading.Event()
    writes(lambda _step: gate.wait(ENOUGH_S))
    often = config("runs", {"checkpoint.every_s": 1e-9}).checkpoint
    one = Saver(tmp_path, "run", often, ALONE)
    assert one.is_due(1)
    one.save(1, {})
    assert not one.is_due(2)
    assert one.is_due(3)  # every_steps
    gate.set()
    one.wait()
    assert one.is_due(2)


def test_several_devices_wait_for_their_saves(config, tmp_path, writes):
    class Two(Team):
        n_devices = 2

    writes(lambda _step: time.sleep(0.05))
    Saver(tmp_path, "run", config("runs").checkpoint, Two()).save(1, {})
    assert savers() == []
    assert is_sound(tmp_path / "checkpoints/step-000000001", run_id="run")
