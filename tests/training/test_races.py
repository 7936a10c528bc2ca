"""S1: one run directory, two processes: one trains, the other says who does, at once."""

import contextlib
import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmtrain.board.mirror import Process
from llmtrain.spec.rundir import hold

WORKER = Path(__file__).with_name("race_worker.py")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_of_two_processes_one_trains_and_the_other_names_it(
    raw, root, tiny_corpus_dir, tmp_path, count
):
    raw["runs_root"] = str(tmp_path)
    raw["budget"]["n_tokens"] = 2560
    done = subprocess.run(
        [sys.executable, str(WORKER), json.dumps(raw), str(tiny_corpus_dir), str(count)],
        env=os.environ | {"PYTHONPATH": f"{root}:{root / 'scripts'}", "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    races = json.loads(done.stdout.splitlines()[-1])
    for pair in races:
        winner, loser = sorted(pair, key=lambda one: one["code"])
        assert (winner["code"], winner["trained"], winner["said"]) == (0, True, "")
        assert (loser["code"], loser["trained"]) == (4, False)
        (line,) = loser["said"].splitlines()
        owner = rf"is in use by process {winner['pid']} on {socket.gethostname()} since 20\d\d-"
        assert re.search(owner, line), line
    slowest = max(one["seconds"] for pair in races for one in pair if one["code"] == 4)
    print(f"{len(races)} races; the slowest refusal took {slowest:.2f} s")


def descriptors(pid):
    """Return the files that a process has open."""
    found = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since
            found.add(str(path.readlink()))
    return found


def test_the_processes_that_a_run_starts_do_not_inherit_its_lock(tmp_path):
    lock = str(tmp_path / "lock")
    with hold(tmp_path):
        courier = Process({})
        spawn = multiprocessing.get_context("spawn")
        barrier = spawn.Barrier(2)
        worker = spawn.Process(target=barrier.wait)
        worker.start()
        try:
            while barrier.n_waiting == 0:  # from its fork to its exec it has all that we have
                assert worker.is_alive()
                time.sleep(0.05)
            assert lock in descriptors(os.getpid())
            for pid in (courier.child.pid, worker.pid):
                assert lock not in descriptors(pid)
        finally:
            courier.stop()
            worker.kill()
            worker.join()
