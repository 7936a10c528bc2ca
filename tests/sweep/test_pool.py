"""The pool with real processes: order, warmth, failure, death, and stopping."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import resource_tracker, util
from pathlib import Path

import pytest
from processes import LIMIT_S, is_gone, wait_for

from llmtrain.spec.errors import ConfigError, DeviceLostError, InterruptedRunError
from llmtrain.sweep import pool as pools
from llmtrain.sweep.pool import Watcher, make_slots, open_pool
from llmtrain.sweep.process import Job, Slot

SLOTS = [Slot(index=i, cores=(min(os.sched_getaffinity(0)),), gpu=None) for i in range(2)]
CALLS, LOCKS = [], []


def work(payload, report):
    """Do what the payload says, in a worker."""
    CALLS.append(payload)
    match payload["do"]:
        case "raise":
            raise ValueError("as asked\nsecond line")
        case "refuse":
            raise ConfigError("refused, as asked")
        case "lose":
            raise DeviceLostError("the GPU failed, as asked")
        case "exit":
            os._exit(7)
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "touch":
            Path(payload["path"]).touch()
        case "make":
            Path(payload["path"]).touch()
            report({"share": 0.5})
            wait_for(Path(payload["until"]).is_file)
        case "hang":
            report({})  # alive, for the last time
            time.sleep(3600)
        case "slow":  # longer than the limit of a hang, with signs of life
            for _ in range(20):
                time.sleep(0.25)
                report({})
        case "lock":  # as tqdm does, which torch's compiler uses
            LOCKS.append(multiprocessing.RLock())
        case "late":
            time.sleep(5.0)
        case "save":
            signal.signal(signal.SIGTERM, lambda *_: Path(payload["path"]).touch() or os._exit(0))
            report({"share": 0.5})
            signal.pause()
    report({"share": 1.0})
    facts = {"cores": sorted(os.sched_getaffinity(0)), "threads": os.environ["OMP_NUM_THREADS"]}
    return {"pid": os.getpid(), "calls": len(CALLS), **facts}


def job(name, do="return", cost=1.0, after=None, ready=None, **payload):
    return Job(name=name, payload={"do": do, **payload}, cost=cost, after=after, ready=ready)


class Recorder(Watcher):
    def __init__(self):
        self.order, self.progress, self.events = [], [], []

    def started(self, job):
        self.order.append(job.name)
        self.events.append(("started", job.name))

    def reported(self, job, progress):
        self.progress.append((job.name, progress["share"]))

    def ended(self, outcome):
        self.events.append(("ended", outcome.job.name))


@pytest.fixture(scope="module")
def five():
    """Fourteen jobs: four fail in four ways, one hangs, and one is only slow."""
    jobs = [job(f"ok{i}", cost=i) for i in range(8)]
    jobs += [job(do, do=do, cost=0.5) for do in ("raise", "refuse", "exit", "segfault")]
    jobs += [job(do, do=do, cost=0.6) for do in ("hang", "slow")]
    recorder = Recorder()
    with open_pool(work, SLOTS, hang_s=4.0) as pool:
        return jobs, pool.run(jobs, recorder), recorder


def test_one_failure_does_not_touch_the_others(five):
    jobs, outcomes, _ = five
    assert [outcome.job for outcome in outcomes] == jobs
    failed = {outcome.job.name: outcome.error for outcome in outcomes if outcome.error}
    assert failed == {
        "raise": "ValueError: as asked",
        "refuse": "refused, as asked",
        "exit": "the worker left with code 7",
        "segfault": "the worker was killed by SIGSEGV",
        "hang": "no step for hang_seconds=4; stack.txt says where it stood",
    }
    ways = {outcome.job.name: outcome.way for outcome in outcomes if outcome.error}
    assert ways == {
        "raise": "ValueError",
        "refuse": "ConfigError",
        "exit": "died",
        "segfault": "died",
        "hang": "died",
    }
    assert {o.job.name: o.exit_code for o in outcomes if o.job.name in ("refuse", "hang")} == {
        "refuse": 2,
        "hang": 6,
    }


def test_a_hanging_worker_leaves_the_line_where_it_stood(five):
    _, outcomes, _ = five
    stacks = {outcome.job.name: outcome.stack for outcome in outcomes}
    source = Path(__file__).read_text(encoding="utf-8").splitlines()
    (line,) = [i for i, text in enumerate(source, 1) if text.strip() == "time.sleep(3600)"]
    assert f'test_pool.py", line {line} in work' in stacks["hang"]
    assert stacks["segfault"].startswith("Fatal Python error: Segmentation fault")
    assert stacks["exit"] is None
    assert stacks["ok0"] is None


def test_workers_are_warm_pinned_and_bounded(five):
    _, outcomes, _ = five
    done = [outcome.result for outcome in outcomes if outcome.result]
    assert len({result["pid"] for result in done}) <= 2 + 3  # three of them replaced
    assert max(result["calls"] for result in done) > 1
    assert all(result["cores"] == list(SLOTS[0].cores) for result in done)
    assert {result["threads"] for result in done} == {"1"}


def test_the_longest_job_starts_first_and_progress_arrives(five):
    _, _, recorder = five
    assert recorder.order[:7] == [f"ok{i}" for i in (7, 6, 5, 4, 3, 2, 1)]
    assert recorder.order[-1] == "ok0"
    assert ("ok3", 1.0) in recorder.progress


def test_a_worker_whose_gpu_failed_says_so_and_leaves_the_next_job_to_another():
    jobs = [job("first", cost=3.0), job("lost", do="lose", cost=2.0), job("next", cost=1.0)]
    with open_pool(work, SLOTS[:1]) as pool:
        first, lost, after = pool.run(jobs, Watcher())
    assert (lost.error, lost.way) == ("the GPU failed, as asked", "DeviceLostError")
    assert after.result["pid"] != first.result["pid"]
    assert after.result["calls"] == 1


def test_gpus_are_named_as_cuda_counts_them(tmp_path, monkeypatch):
    monkeypatch.setattr(pools, "DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in ("nvidia3", "nvidia5", "nvidiactl", "nvidia-uvm"):  # a container's part of eight
        (tmp_path / name).touch()
    assert [slot.gpu for slot in make_slots(1)] == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert [slot.gpu for slot in make_slots(1)] == ["3", "5"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_workers_and_says_how_far_it_came(number, tmp_path):
    recorder, saved = Recorder(), tmp_path / "saved"

    def strike():
        wait_for(lambda: ("long", 0.5) in recorder.progress)
        os.kill(os.getpid(), number)

    threading.Thread(target=strike, daemon=True).start()
    jobs = [job("quick", cost=9.0), job("long", do="save", path=str(saved))]
    said = pytest.raises(InterruptedRunError, match="1 of 2 cells done")
    with said as caught, open_pool(work, SLOTS[:1]) as pool:
        pool.run(jobs, recorder)
    assert caught.value.exit_code == 75
    assert saved.is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_worker_starts_waits_until_it_has(number, monkeypatch, capfd):
    started = []

    def strike():  # a signal is given to any thread, and the main one acts on it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        signal.raise_signal(number)

    def spawn(*given, plain=util.spawnv_passfds):
        started.append(plain(*given))
        thread = threading.Thread(target=strike)
        thread.start()
        thread.join()
        return started[0]

    resource_tracker.ensure_running()  # started by the same function
    monkeypatch.setattr(util, "spawnv_passfds", spawn)
    with pytest.raises(InterruptedRunError), open_pool(work, SLOTS[:1]) as pool:
        pool.run([job("one")], Watcher())
    wait_for(lambda: is_gone(started[0]))
    assert capfd.readouterr().err == ""  # no traceback of a worker without its orders


def test_a_job_that_waits_starts_when_it_is_ready_and_fails_with_what_it_waits_for(tmp_path):
    made, used = tmp_path / "made", tmp_path / "used"
    jobs = [
        job("early", do="touch", path=str(used), cost=9.0, after="trunk", ready=made.is_file),
        job("late", cost=8.0, after="trunk", ready=lambda: False),
        job("trunk", do="make", path=str(made), until=str(used), cost=2.0),
        job("bad", do="raise", cost=1.0),
        job("lost", after="bad", ready=lambda: False),
        job("saved", after="bad", ready=lambda: True),
        job("free", after="elsewhere", ready=lambda: False, cost=0.1),
    ]
    recorder = Recorder()
    with open_pool(work, SLOTS) as pool:
        outcomes = pool.run(jobs, recorder)
    assert recorder.order[:2] == ["trunk", "bad"]  # what others wait for goes first
    when = recorder.events.index
    assert when(("started", "early")) < when(("ended", "trunk")) < when(("started", "late"))
    assert {"saved", "free"} <= set(recorder.order)
    assert "lost" not in recorder.order
    assert {outcome.job.name: outcome.error for outcome in outcomes if outcome.error} == {
        "bad": "ValueError: as asked",
        "lost": "bad, which it starts from, failed: ValueError: as asked",
    }


def test_what_a_job_leaves_open_is_closed_without_a_word():
    code = (
        "from test_pool import *\n"
        "if __name__ == '__main__':\n"
        "    with open_pool(work, SLOTS[:1]) as pool:\n"
        "        (outcome,) = pool.run([job('one', do='lock')], Watcher())\n"
        "    assert outcome.error is None, outcome\n"
    )
    command = [sys.executable, "-W", "default", "-c", code]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_job_has_time_for_its_first_sign_of_life_in_a_warm_worker_too():
    with open_pool(work, SLOTS[:1], hang_s=2.0) as pool:
        first, late = pool.run([job("first", cost=2.0), job("late", do="late")], Watcher())
    assert (first.error, late.error) == (None, None)
    assert late.result["calls"] == 2


def test_workers_save_when_the_watcher_fails(tmp_path):
    class Broken(Watcher):
        def reported(self, job, progress):
            raise BrokenPipeError

    with open_pool(work, SLOTS[:1]) as pool, pytest.raises(BrokenPipeError):
        pool.run([job("one", do="save", path=str(tmp_path / "saved"))], Broken())
    assert (tmp_path / "saved").is_file()
