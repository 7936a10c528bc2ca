"""Work off a file of cells together with every other process that does so on the same folder.

  python scripts/drain.py cells=runs/NAME/cells-1a2b3c4d.json
  python scripts/drain.py cells=runs/NAME/cells-1a2b3c4d.json per_device=2 hang_seconds=1800

Keys:
  cells=FILE          the cells, as hydra/launcher=slurm writes them (required)
  per_device=1        workers per GPU, or per core where there is none
  max_requeues=0      how often a task that was stopped asks SLURM to start it again
  hang_seconds=S      a worker whose cell makes no step for so long is killed; left out, it is
                      waited for

The tasks of hydra/launcher=slurm run this; by hand it joins any machine that shares the folder,
started where the sweep was.
"""

import interrupts  # noqa: F401 - first: what it sets up holds while the others are imported

# isort: split
import math
from pathlib import Path

from edge import key_values, run_edge
from sweep_console import SweepConsole

from llmtrain.spec.errors import ConfigError, InterruptedRunError
from llmtrain.sweep.drain import cell_pool, drain, read_cells
from llmtrain.sweep.launcher import check_hang_limit
from llmtrain.sweep.slurm import may_requeue, requeue, task_slots
from llmtrain.sweep.sweeper import raise_failures
from llmtrain.training.worker import work


def main(overrides: list[str]) -> None:
    """Read the cells, train those that nobody else does, and go back to the queue if stopped."""
    given = {"per_device": "1", "max_requeues": "0", "hang_seconds": "inf"}
    given |= key_values(overrides, ("cells", *given))
    if "cells" not in given:
        raise ConfigError(
            "drain.py takes cells=FILE, per_device=NUMBER, max_requeues=NUMBER and hang_seconds=S"
        )
    try:
        per_device, max_requeues = int(given["per_device"]), int(given["max_requeues"])
        hang_s = float(given["hang_seconds"])
    except ValueError as error:
        raise ConfigError(
            f"per_device and max_requeues are whole numbers, hang_seconds a number: {error}"
        ) from error
    limit = None if math.isinf(hang_s) else hang_s
    check_hang_limit(limit)
    configs = read_cells(Path(given["cells"]))
    try:
        with cell_pool(work, task_slots(per_device), hang_s=limit) as pool:
            raise_failures(drain(configs, pool, SweepConsole()))
    except InterruptedRunError:
        if may_requeue(max_requeues):
            print("saved; SLURM is asked to start this task again", flush=True)
            requeue()
        raise


if __name__ == "__main__":
    run_edge(main)
