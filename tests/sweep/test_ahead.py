"""Processes beside the pool: what they take, and that a sweep neither waits for nor needs them."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from processes import is_gone, wait_for

from llmtrain.spec.errors import InterruptedRunError
from llmtrain.sweep.ahead import Ahead
from llmtrain.sweep.pool import Watcher, ahead_slots, open_pool
from llmtrain.sweep.process import Job, Slot

SLOTS = [Slot(index=0, cores=(min(os.sched_getaffinity(0)),), gpu=None)]


def lines(path):
    return path.read_text().splitlines() if path.is_file() else []


def write(path, line):
    with path.open("a") as file:
        file.write(f"{line}\n")


def train(payload, report):
    """Note the job; wait for what the other side notes, where the payload says so."""
    folder = Path(payload["folder"])
    write(folder / "trained", payload["name"])
    wait_for(lambda: set(payload["until"]) <= set(lines(folder / "ahead")))
    return {}


def ahead(payload, report):
    """Note the job, and fail as the payload says."""
    report({})
    folder = Path(payload["folder"])
    if payload["fails"] == "hang":
        child = subprocess.Popen(["sleep", "3600"])
        write(folder / "pids", f"{os.getpid()} {child.pid}")
    write(folder / "ahead", payload["name"])
    match payload["fails"]:
        case "raise":
            raise ValueError("as asked")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            time.sleep(3600)
    return {}


@pytest.fixture
def job(tmp_path):
    """Return a function that makes a job which needs letters, and waits for others to be noted."""

    def make_job(name, needs, until=(), fails=None):
        payload = {"name": name, "needs": needs, "until": list(until), "fails": fails}
        return Job(name=name, payload=payload | {"folder": str(tmp_path)}, cost=1.0)

    return make_job


def letters(job):
    return frozenset(job.payload["needs"])


def beside(told, count=1):
    return contextlib.closing(Ahead(ahead_slots(count, SLOTS), ahead, letters, told.append))


def run(jobs, compiling, watcher=None):
    with open_pool(train, SLOTS, ahead=compiling) as pool:
        return pool.run(jobs, watcher or Watcher())


def test_cells_are_taken_in_their_order_one_for_everything_new(job, tmp_path):
    told = []
    jobs = [
        job("first", "a", until=["second", "fourth"]),
        job("second", "ab"),
        job("third", "b"),
        job("fourth", "abc"),
        job("fifth", "ca"),
        job("sixth", "a"),
    ]
    with beside(told) as compiling:
        outcomes = run(jobs, compiling)
    assert [outcome.error for outcome in outcomes] == [None] * 6
    assert lines(tmp_path / "ahead") == ["second", "fourth"]
    assert lines(tmp_path / "trained") == [job.name for job in jobs]
    assert told == []


def test_nothing_is_started_where_nothing_is_new(job, tmp_path):
    with beside([]) as compiling, open_pool(train, SLOTS, ahead=compiling) as pool:
        pool.run([job("one", "a"), job("two", "a")], Watcher())
        assert compiling.scratch is None
    assert lines(tmp_path / "ahead") == []


def test_a_process_ends_as_soon_as_nothing_new_is_left(job):
    with beside([]) as compiling:
        compiling.hand_out([job("second", "b"), job("third", "b")], [job("first", "a")])
        (worker,) = compiling.busy()
        while worker.job is not None:
            compiling.hear(worker)
        compiling.hand_out([job("third", "b")], [])
        assert not worker.process.is_alive()
        assert compiling.workers == []


def test_two_processes_share_the_cells(job, tmp_path):
    jobs = [job("first", "a", until=["second", "third"]), job("second", "b"), job("third", "c")]
    jobs[1].payload["fails"] = "hang"  # so that the other one has to take the third
    with beside(told := [], count=2) as compiling:
        outcomes = run(jobs, compiling)
    assert [outcome.error for outcome in outcomes] == [None] * 3
    assert sorted(lines(tmp_path / "ahead")) == ["second", "third"]
    assert told == []


@pytest.mark.parametrize(
    ("fails", "why", "taken"),
    [
        ("raise", "ValueError: as asked", ["second", "third"]),
        ("die", "the worker was killed by SIGKILL", ["second"]),
    ],
)
def test_a_failure_is_said_once_and_fails_no_cell(job, tmp_path, fails, why, taken):
    told = []

    class Told(list):
        def append(self, line):
            told.append(line)
            write(tmp_path / "ahead", "told")

    jobs = [job("first", "a", until=[*taken, "told"])]
    jobs += [job("second", "b", fails=fails), job("third", "c", fails=fails), job("last", "a")]
    with beside(Told()) as compiling:
        outcomes = run(jobs, compiling)
    assert [outcome.error for outcome in outcomes] == [None] * 4
    assert sorted(lines(tmp_path / "ahead")) == sorted([*taken, "told"])
    (line,) = told
    assert line.startswith(f"compiling ahead for second failed: {why}; ")


def test_a_process_that_died_is_not_replaced(job):
    with beside(told := []) as compiling:
        jobs = [job("second", "b", fails="die"), job("third", "c")]
        compiling.hand_out(jobs, [job("first", "a")])
        (worker,) = compiling.busy()
        while worker.job is not None:
            compiling.hear(worker)
        compiling.hand_out(jobs[1:], [])
        assert compiling.workers == []
    assert len(told) == 1


def test_a_process_that_cannot_start_is_said_and_done_without(job, tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError("no process more")

    told = []
    monkeypatch.setattr("tempfile.TemporaryDirectory.__init__", refuse)
    with beside(told, count=2) as compiling:
        compiling.hand_out([job("second", "b")], [job("first", "a")])
        assert compiling.busy() == []
    assert told == ["nothing is compiled ahead: no process more; cells compile what they need "
                    "themselves"]  # fmt: skip


@pytest.mark.parametrize("ending", ["the last cell", "a signal"])
def test_the_end_of_a_sweep_is_the_end_of_all_that_compiles(job, tmp_path, ending):
    until = ["second"] if ending == "the last cell" else ["second", "never"]
    jobs = [job("first", "a", until=until), job("second", "b", fails="hang")]

    def strike():
        wait_for(lambda: lines(tmp_path / "pids"))
        os.kill(os.getpid(), signal.SIGTERM)

    class Struck(Watcher):
        def stopping(self):
            self.was_gone = is_gone(pids()[0])

    def pids():
        return [int(pid) for pid in lines(tmp_path / "pids")[0].split()]

    watcher = Struck()
    with beside([]) as compiling:
        if ending == "a signal":
            threading.Thread(target=strike, daemon=True).start()
            with pytest.raises(InterruptedRunError):
                run(jobs, compiling, watcher)
            assert watcher.was_gone  # before the cells that train are asked to save
        else:
            run(jobs, compiling, watcher)
    assert len(pids()) == 2
    wait_for(lambda: all(map(is_gone, pids())))
