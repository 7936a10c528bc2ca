"""A driver of a sweep whose cells can be told to fail: `python faulty_driver.py CELLS HANG_S`.

Every step of every cell adds the cell's name and the driver's process to steps.log beside the file
of cells: what was done, counted apart from what the run folders say.
"""

import ctypes
import os
import sys
import time
from pathlib import Path

from llmtrain.spec.build import build
from llmtrain.spec.plan import run_id
from llmtrain.spec.settings import TrainConfig
from llmtrain.sweep.drain import SweepWatcher, read_cells
from llmtrain.sweep.launcher import HANDS, PoolLauncher
from llmtrain.training import worker

RAISE, EXIT, SEGFAULT, HANG, NAN = range(100, 105)  # seeds


def work(payload, report):
    """Fail as the seed says, or train and count the steps."""
    config = build(TrainConfig, payload["config"])
    match config.seed:
        case 100:
            raise ValueError("as asked")
        case 101:
            os._exit(137)
        case 102:
            ctypes.string_at(0)
        case 103:
            report({})
            time.sleep(3600)
    log = Path(sys.argv[1]).parent / "steps.log"
    descriptor = os.open(log, os.O_APPEND | os.O_CREAT | os.O_WRONLY)

    def count(progress):
        if not progress:
            os.write(descriptor, f"{run_id(config)} {os.getppid()}\n".encode())
        report(progress)

    try:
        return worker.work(payload, count)
    finally:
        os.close(descriptor)


class Lines(SweepWatcher):
    """A line for every cell that ends."""

    def ended(self, outcome):
        """Print it."""
        print(outcome.job.name, outcome.error or "trained", flush=True)


if __name__ == "__main__":
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # a few cells at a time
    HANDS.work, HANDS.watcher = work, Lines()
    launcher = PoolLauncher(per_device=1, hang_seconds=float(sys.argv[2]), compile_ahead=0)
    outcomes = launcher.run_cells(read_cells(Path(sys.argv[1])))
    sys.exit(any(outcome is not None and outcome.error for outcome in outcomes))
