"""A driver between two rounds: `python resting_driver.py FOLDER` runs jobs, says so, and waits.

FOLDER/pids has the processes of its pool, of which the last one still compiles.
"""

import os
import sys
import time
from pathlib import Path

from processes import wait_for

from llmtrain.spec.errors import LlmtrainError
from llmtrain.sweep.ahead import Ahead
from llmtrain.sweep.pool import Watcher, ahead_slots, open_pool
from llmtrain.sweep.process import Job, Slot

SLOTS = [Slot(index=i, cores=(min(os.sched_getaffinity(0)),), gpu=None) for i in range(2)]


def note(payload):
    """Add this process to the file."""
    with Path(payload["folder"], "pids").open("a") as file:
        file.write(f"{os.getpid()}\n")


def train(payload, report):
    """Note the process; outlive the start of the other ones."""
    note(payload)
    wait_for(lambda: len(Path(payload["folder"], "pids").read_text().split()) >= 3)
    return {}


def compile_for_long(payload, report):
    """Note the process and outlast the test."""
    note(payload)
    time.sleep(3600)
    return {}


def needs(job):
    """Return what no other job needs."""
    return frozenset([job.name])


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    jobs = [Job(name=f"job{i}", payload={"folder": str(folder)}, cost=1.0) for i in range(3)]
    ahead = Ahead(ahead_slots(1, SLOTS), compile_for_long, needs)
    try:
        with open_pool(train, SLOTS, ahead=ahead) as pool:
            pool.run(jobs, Watcher())
            (folder / "resting").touch()
            time.sleep(3600)
    except LlmtrainError as error:
        print(error)
        sys.exit(error.exit_code)
