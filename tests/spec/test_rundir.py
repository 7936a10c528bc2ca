import fcntl
import itertools
import json
import multiprocessing
import os
import signal
import socket
import time

import pytest

from llmtrain.spec import rundir
from llmtrain.spec.errors import MismatchError, RunLockedError
from llmtrain.spec.plan import plan_run


def take_and_die(directory):
    with rundir.hold(directory):
        os._exit(9)


def test_a_held_directory_is_refused_with_its_owner(tmp_path):
    with rundir.hold(tmp_path):
        assert rundir.is_held(tmp_path)
        with pytest.raises(RunLockedError, match=f"in use by process {os.getpid()} on"):
            rundir.hold(tmp_path).__enter__()
    assert not rundir.is_held(tmp_path)


def test_an_owner_that_has_not_written_its_name_yet_is_named_all_the_same(tmp_path, monkeypatch):
    looks = itertools.count(1)

    def sleep(_seconds):
        if next(looks) == rundir.LOOKS + 2:
            owner.write("process 7 on host")
            owner.flush()

    monkeypatch.setattr(rundir.time, "sleep", sleep)
    with (tmp_path / "lock").open("w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        with pytest.raises(RunLockedError, match="in use by process 7 on host; wait for it"):
            rundir.hold(tmp_path).__enter__()


def test_two_who_look_do_not_take_each_other_for_an_owner(tmp_path):
    with rundir.hold(tmp_path):
        pass
    with (tmp_path / "lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert not rundir.is_held(tmp_path)


def test_a_dead_holder_does_not_block(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=take_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 9
    with rundir.hold(tmp_path):
        pass


def test_state_is_planned_until_written(tmp_path):
    assert rundir.read_state(tmp_path) == ("planned", None)
    rundir.write_state(tmp_path, "failed", "loss nan")
    assert rundir.read_state(tmp_path) == ("failed", "loss nan")


def test_another_run_or_other_data_in_the_directory_are_refused(make, tmp_path):
    config = make()
    plan = plan_run(config, vocab_size=256, unique_tokens=10**6)
    rundir.begin(tmp_path, config, plan, "a" * 64)
    rundir.begin(tmp_path, config, plan, "a" * 64)
    with pytest.raises(MismatchError, match="begun on data aaaaaaaaaaaa, now it is bbbbbbbbbbbb"):
        rundir.begin(tmp_path, config, plan, "b" * 64)
    with pytest.raises(MismatchError, match="another configuration"):
        rundir.begin(tmp_path, make({"seed": 1}), plan, "a" * 64)


def test_every_start_on_other_code_is_noted_with_its_environment(make, tmp_path, monkeypatch):
    config = make()
    plan = plan_run(config, vocab_size=256, unique_tokens=10**6)
    for commit in ("a", "a", "b"):
        monkeypatch.setattr(rundir, "code_identity", lambda commit=commit: {"commit": commit})
        rundir.begin(tmp_path, config, plan, "a" * 64)
    origins = json.loads((tmp_path / "origins.json").read_text())
    assert [origin["code"]["commit"] for origin in origins] == ["a", "b"]
    assert origins[0]["environment"]["python"]


def test_who_only_looks_does_not_keep_an_owner_out(tmp_path, monkeypatch):
    with rundir.hold(tmp_path):
        pass
    with (tmp_path / "lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        monkeypatch.setattr(rundir.time, "sleep", lambda _s: fcntl.flock(looking, fcntl.LOCK_UN))
        with rundir.hold(tmp_path):
            assert (
                f"process {os.getpid()} on {socket.gethostname()} since 20"
                in (tmp_path / "lock").read_text()
            )


FORK = multiprocessing.get_context("fork")


def stay(pipe):
    pipe.send(os.getpid())  # by now it has let go of what its parent holds
    time.sleep(600)


def hold_until_killed(directory, pipe, n_heirs):
    with rundir.hold(directory):
        for _ in range(n_heirs):
            FORK.Process(target=stay, args=(pipe,)).start()
        stay(pipe)


@pytest.fixture
def holder(tmp_path):
    """Return a function that starts a process that holds the directory, and kill it in the end."""
    holders, heirs = [], set()

    def start(n_heirs=0):
        here, there = FORK.Pipe(duplex=False)
        process = FORK.Process(target=hold_until_killed, args=(tmp_path, there, n_heirs))
        process.start()
        there.close()
        holders.append(process)
        heirs.update({here.recv() for _ in range(1 + n_heirs)} - {process.pid})
        return process

    yield start
    for process in holders:  # not by number, which is another's once it has been waited for
        process.kill()
        process.join()
    for pid in heirs:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_the_lock_of_a_holder_that_was_killed_is_taken_at_once(holder, tmp_path, count):
    for _ in range(count):
        process = holder()
        with pytest.raises(RunLockedError, match=f"in use by process {process.pid} on"):
            rundir.hold(tmp_path).__enter__()
        process.kill()
        process.join()
        with rundir.hold(tmp_path):
            assert rundir.is_held(tmp_path)


def test_a_holder_that_stands_still_holds(holder, tmp_path):
    process = holder()
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(0.5)
    assert rundir.is_held(tmp_path)
    with pytest.raises(RunLockedError, match=f"in use by process {process.pid} on"):
        rundir.hold(tmp_path).__enter__()
    os.kill(process.pid, signal.SIGCONT)
    assert rundir.is_held(tmp_path)


def test_a_child_that_outlives_the_owner_does_not_keep_the_lock(holder, tmp_path):
    process = holder(n_heirs=1)
    assert rundir.is_held(tmp_path)
    process.kill()
    process.join()
    assert not rundir.is_held(tmp_path)
    with rundir.hold(tmp_path):
        assert rundir.is_held(tmp_path)


def test_a_forked_child_that_ends_does_not_give_the_owners_lock_back(tmp_path):
    with rundir.hold(tmp_path):
        child = FORK.Process(target=int)
        child.start()
        child.join()
        assert rundir.is_held(tmp_path)


def test_whose_process_number_stands_in_the_lock_decides_nothing(tmp_path):
    for number in (os.getpid(), os.getppid(), 1):  # all of them are alive
        (tmp_path / "lock").write_text(f"process {number} on {socket.gethostname()} since 2026")
        with rundir.hold(tmp_path):
            assert rundir.is_held(tmp_path)
