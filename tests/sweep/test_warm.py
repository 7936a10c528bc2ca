"""Workers that stay warm from round to round, are replaced in between, and outlive nobody."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
from processes import LIMIT_S, is_gone, wait_for

from llmtrain.spec.rundir import hold, run_directory
from llmtrain.sweep import pool as pool_module
from llmtrain.sweep.drain import SweepWatcher, cell_pool, drain
from llmtrain.sweep.launcher import HANDS, PoolLauncher
from llmtrain.sweep.pool import Watcher, open_pool
from llmtrain.sweep.process import Job, Slot

DRIVER = Path(__file__).with_name("resting_driver.py")
SLOTS = [Slot(index=i, cores=(min(os.sched_getaffinity(0)),), gpu=None) for i in range(2)]


def work(payload, report):
    """Say which process this is, or kill it, as the payload says."""
    report({})
    if payload.get("dies"):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)  # so that the other worker has to take the next job
    return {"pid": os.getpid()}


def jobs(count, **payload):
    return [Job(name=f"job{i}", payload=payload, cost=1.0) for i in range(count)]


def pids(outcomes):
    assert [outcome.error for outcome in outcomes] == [None] * len(outcomes)
    return {outcome.result["pid"] for outcome in outcomes}


def test_the_same_workers_serve_all_rounds_and_end_with_the_pool():
    with open_pool(work, SLOTS) as pool:
        assert pool.workers == []  # none before there is a job
        first = pids(pool.run(jobs(2), Watcher()))
        assert pids(pool.run(jobs(4), Watcher())) == first
        assert len(first) == 2
    assert all(map(is_gone, first))


def test_a_worker_killed_in_one_round_is_replaced_for_the_next():
    with open_pool(work, SLOTS) as pool:
        first = pids(pool.run(jobs(2), Watcher()))
        killed, _ = pool.run([*jobs(1, dies=True), *jobs(2)[1:]], Watcher())
        assert killed.error == "the worker was killed by SIGKILL"
        second = pids(pool.run(jobs(2), Watcher()))
        assert len(second) == 2
        assert len(second & first) == 1


def test_a_worker_that_dies_between_rounds_fails_no_job():
    with open_pool(work, SLOTS) as pool:
        dead, other = pids(pool.run(jobs(2), Watcher()))
        os.kill(dead, signal.SIGKILL)
        next(worker for worker in pool.workers if worker.process.pid == dead).process.join()
        second = pids(pool.run(jobs(2), Watcher()))
        assert len(second) == 2
        assert other in second


def test_a_smaller_round_ends_the_workers_that_it_leaves_idle():
    with open_pool(work, SLOTS) as pool:
        first = pids(pool.run(jobs(2), Watcher()))
        (kept,) = pids(pool.run(jobs(1), Watcher()))
        (surplus,) = first - {kept}
        assert is_gone(surplus)
        assert kept in pids(pool.run(jobs(2), Watcher()))


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 75), (signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGKILL, -9)],
)
def test_who_ends_between_rounds_leaves_no_process(start_in_group, tmp_path, number, code):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup would hand HUP on, ignored
    process = start_in_group(DRIVER, tmp_path)
    signal.signal(signal.SIGHUP, before)
    wait_for((tmp_path / "resting").is_file)
    started = (tmp_path / "pids").read_text().split()
    assert len(set(started)) == 3
    assert not any(map(is_gone, started))
    process.send_signal(number)  # to the driver alone: the others have to find out
    out, error = process.communicate(timeout=LIMIT_S)
    assert process.returncode == code, error
    assert out == ("" if code < 0 else f"stopped by {number.name}; run the same command to go on\n")
    wait_for(lambda: all(map(is_gone, started)))


@pytest.fixture
def cell(make, tmp_path):
    """Return a function that makes a cell of a sweep in this test's folder."""
    return lambda seed: make({"seed": seed, "runs_root": str(tmp_path / "runs")})


def test_a_launcher_keeps_its_workers_from_call_to_call(cell, monkeypatch):
    monkeypatch.setattr(HANDS, "work", work)
    launcher = PoolLauncher(per_device=1, hang_seconds=60.0, compile_ahead=0)
    with launcher.opened() as run_cells:
        first = pids(run_cells([cell(0)]))
        assert pids(run_cells([cell(1)])) == first
    assert first != pids(launcher.run_cells([cell(2)]))


def test_a_drain_that_waits_for_others_gives_its_workers_up_until_there_is_work(cell, monkeypatch):
    free, held = cell(0), cell(1)
    seen = []

    class Waiting(SweepWatcher):
        def waiting(self, n_cells):
            seen.append([worker.process.pid for worker in pool.workers])
            if len(seen) == 2:  # not at once: the other may give the cell back
                monkeypatch.setattr(pool_module, "IDLE_S", 0.0)
            if not seen[-1]:
                other.close()

    monkeypatch.setattr(pool_module, "IDLE_S", 3600.0)
    other = contextlib.ExitStack()
    other.enter_context(hold(run_directory(held)))
    with cell_pool(work, SLOTS) as pool:
        first, second = drain([free, held], pool, Waiting(), wait=True)
    (pid,) = pids([first])
    assert seen[:2] == [[pid], [pid]]
    assert seen[-1] == []
    assert is_gone(pid)
    assert pids([second]) != {pid}
