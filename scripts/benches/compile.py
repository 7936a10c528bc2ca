"""A sweep whose shapes all compile: by itself, with a process that compiles ahead, and again."""

import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from edge import compose

from benches import Bench, BenchError, Facts, Seconds, finished
from benches.alone import compare
from benches.pool import SOURCE, cell_overrides
from llmtrain.corpus.prepare import prepare
from llmtrain.spec.compile_cache import INDUCTOR, TRITON
from llmtrain.spec.settings import TrainConfig, build_run
from llmtrain.sweep.ahead import Ahead
from llmtrain.sweep.drain import SweepWatcher, cell_pool, drain
from llmtrain.sweep.pool import make_slots
from llmtrain.sweep.process import Slot
from llmtrain.training.worker import compile_cell, work

# Whether a process compiles ahead, and the name of the cache, which the first side to use it fills.
SIDES = {"alone": (False, "one"), "ahead": (True, "other"), "compiled before": (False, "one")}


def time_sides(keys: Mapping[str, int]) -> Seconds:
    """Return the wall of each side and the seconds that its cells compile, in their order.

    One worker trains on the first core; what compiles ahead has the last one. Raises BenchError
    where a cell fails, or the losses of two sides differ.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "text").mkdir()
        for i, path in enumerate(sorted(SOURCE.rglob("*.py"))):
            (root / "text" / f"{i}.txt").write_bytes(path.read_bytes())
        found: Seconds = {}
        sides = {side: side_configs(root, side, keys) for side in SIDES}
        for side, (is_ahead, cache) in SIDES.items():
            prepare(sides[side][0].data)
            os.environ[INDUCTOR] = str(root / cache)
            os.environ.pop(TRITON, None)
            found |= time_side(side, sides[side], is_ahead=is_ahead)
        for others in zip(*sides.values(), strict=True):
            for other in others[1:]:
                compare(others[0], other)
    return found


def side_configs(root: Path, side: str, keys: Mapping[str, int]) -> list[TrainConfig]:
    """Return cells of one length, each of another width, that compile."""
    return [
        build_run(
            compose(
                "train",
                [
                    *cell_overrides(root, 0, keys["steps"], width=32 + 16 * i),
                    f"runs_root={root / side}",
                    "runtime.compile=true",
                ],
            )
        )[0]
        for i in range(keys["cells"])
    ]


def time_side(side: str, configs: list[TrainConfig], *, is_ahead: bool) -> Seconds:
    """Run the cells; return their wall and what they compiled."""
    first, last = (make_slots(1)[i].cores for i in (0, -1))
    beside = [Slot(index=1, cores=last, gpu=None)] if is_ahead else []
    told: list[str] = []
    begin = time.perf_counter()
    ahead = Ahead(beside, compile_cell, tell=told.append)
    with cell_pool(work, [Slot(index=0, cores=first, gpu=None)], ahead=ahead) as pool:
        ended = drain(configs, pool, SweepWatcher())
    wall = time.perf_counter() - begin
    if failed := [*told, *(outcome.error for outcome in ended if outcome.error)]:
        raise BenchError(f"{side}: {failed[0]}")
    seconds = [finished(config).seconds["compile"] for config in configs]
    cells = {f"{side}: cell {i} compiles": value for i, value in enumerate(seconds, 1)}
    return {f"{side}: wall": wall, **cells, f"{side}: all cells compile": sum(seconds)}


def ratio(median: Seconds) -> Facts:
    """Return how many times longer a sweep alone takes, and compiles."""
    return {
        f"alone over {side}, {what}": median[f"alone: {what}"] / median[f"{side}: {what}"]
        for side in ("ahead", "compiled before")
        for what in ("wall", "all cells compile")
    }


BENCH = Bench(
    keys={"cells": "5", "steps": "400"},
    run=time_sides,
    facts=ratio,
    packages=("torch", "numpy"),
)
