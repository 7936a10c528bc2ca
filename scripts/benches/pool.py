"""A sweep's fixed cost: the same cells in warm workers, and in a process each."""

import resource
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edge import compose

from benches import Bench, BenchError, Facts, Seconds
from benches.alone import compare, train_alone
from llmtrain.corpus.prepare import prepare
from llmtrain.spec.settings import TrainConfig, build_run
from llmtrain.sweep.drain import SweepWatcher, cell_pool, drain
from llmtrain.sweep.pool import make_slots
from llmtrain.training.worker import work

SOURCE = Path(__file__).resolve().parents[2] / "llmtrain"  # the text: this package's own files


def cell_overrides(root: Path, seed: int, steps: int, width: int = 16) -> list[str]:
    """Return the overrides of a tiny cell of `steps` steps of 1,024 tokens."""
    return [
        "data=local",
        f"data.paths=[{root / 'text'}]",
        "data.name=bench",
        f"data.root={root / 'data'}",
        "data.max_epochs=1e6",
        "model=demo",
        f"model.d_model={width}",
        "recipe.batch_tokens=1024",
        "evaluation.n_tokens=4096",
        "evaluation.sample_tokens=0",
        "budget.flops=null",
        "budget.min_steps=1",
        f"budget.n_tokens={1024 * steps}",
        "tracking.wandb=disabled",
        f"seed={seed}",
    ]


def time_pool(keys: Mapping[str, int]) -> Seconds:
    """Return the wall and the CPU seconds of the cells in a warm pool, and in a process each.

    Both sides take as many cells at once as the machine has slots, and the corpus is prepared
    before. Raises BenchError where a cell fails, or the losses of the two sides differ.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "text").mkdir()
        for i, path in enumerate(sorted(SOURCE.rglob("*.py"))):
            (root / "text" / f"{i}.txt").write_bytes(path.read_bytes())
        cells = [cell_overrides(root, seed, keys["steps"]) for seed in range(keys["cells"])]
        sides: dict[str, list[TrainConfig]] = {
            side: [
                build_run(compose("train", [*cell, f"runs_root={root / side}"]))[0]
                for cell in cells
            ]
            for side in ("warm", "cold")
        }
        prepare(sides["warm"][0].data)
        slots = make_slots(1)
        clock, cpu = [time.perf_counter()], [cpu_seconds()]
        with cell_pool(work, slots) as pool:
            failed = [o.error for o in drain(sides["warm"], pool, SweepWatcher()) if o.error]
        clock.append(time.perf_counter())
        cpu.append(cpu_seconds())
        if failed:
            raise BenchError(f"a cell failed: {failed[0]}")
        with ThreadPoolExecutor(len(slots)) as threads:
            commands = [[*cell, f"runs_root={root / 'cold'}"] for cell in cells]
            list(threads.map(train_alone, commands))
        clock.append(time.perf_counter())
        cpu.append(cpu_seconds())
        for warm, cold in zip(sides["warm"], sides["cold"], strict=True):
            compare(warm, cold)
    return {
        "warm workers": clock[1] - clock[0],
        "a process each": clock[2] - clock[1],
        "warm workers, CPU": cpu[1] - cpu[0],
        "a process each, CPU": cpu[2] - cpu[1],
    }


def cpu_seconds() -> float:
    """Return the CPU seconds of all child processes that have ended: other load is not in them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def ratio(median: Seconds) -> Facts:
    """Return how many times longer a process each takes."""
    return {
        "cold over warm": median["a process each"] / median["warm workers"],
        "cold over warm, CPU": median["a process each, CPU"] / median["warm workers, CPU"],
    }


BENCH = Bench(
    keys={"cells": "12", "steps": "50"},
    run=time_pool,
    facts=ratio,
    packages=("torch", "numpy", "hydra-core"),
)
