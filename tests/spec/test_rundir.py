import fcntl
import json
import multiprocessing
import os
import socket
import threading

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


def test_who_only_looks_does_not_keep_an_owner_out(tmp_path):
    with rundir.hold(tmp_path):
        pass
    with (tmp_path / "lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.03, lambda: fcntl.flock(looking, fcntl.LOCK_UN)).start()
        with rundir.hold(tmp_path):
            assert (
                f"process {os.getpid()} on {socket.gethostname()} since 20"
                in (tmp_path / "lock").read_text()
            )
