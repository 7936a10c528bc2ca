"""How cost grows: time with cells, model size and tokens; memory with model size."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from edge import compose

from benches import Bench, Facts, Seconds, finished
from llmtrain.corpus.prepare import prepare
from llmtrain.scaling.plot.cost import Panel, draw_costs
from llmtrain.spec.settings import TrainConfig, build_run
from llmtrain.sweep.drain import cell_job
from llmtrain.sweep.pool import Watcher, make_slots, open_pool
from llmtrain.sweep.process import Slot
from llmtrain.sweep.sweeper import raise_failures
from llmtrain.training.worker import work

CELLS = (2, 4, 8, 16)
TOKENS = (100_000, 200_000, 400_000, 800_000)
MODELS = ("w16d2", "w32d2", "w64d4", "w96d3", "w128d4", "w192d6")
FIXED_TOKENS = 65_536
SMALL = "w16d2"


def measure(keys: Mapping[str, Any]) -> Seconds:
    """Return wall seconds against cells, and step seconds and memory against N and tokens.

    Every size has a process of its own, because a process's peak memory never falls.
    """
    slots = make_slots(1)
    found: Seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for n_cells in CELLS:
            cells = [_config(SMALL, 100_000, root / "cells", n_cells, i) for i in range(n_cells)]
            begin = time.perf_counter()
            _train(cells, slots)
            found[f"{n_cells} cells"] = time.perf_counter() - begin
        for model in MODELS:
            config = _config(model, FIXED_TOKENS, root / "sizes")
            _train([config], slots[:1])
            record = finished(config)
            n_params = record.params["no_input_embedding"]
            found[f"{n_params} parameters, steps"] = record.seconds["train"]
            found[f"{n_params} parameters, GB"] = record.memory_bytes / 1e9
        for n_tokens in TOKENS:
            config = _config(SMALL, n_tokens, root / "tokens")
            _train([config], slots[:1])
            found[f"{n_tokens} tokens, steps"] = finished(config).seconds["train"]
    if keys["picture"]:
        draw_costs(_panels(found), Path(keys["picture"]))
    return found


def _config(model: str, n_tokens: int, root: Path, n_cells: int = 1, seed: int = 0) -> TrainConfig:
    overrides = [
        f"model={model}",
        "recipe.batch_tokens=4096",
        "budget.flops=null",
        "budget.min_steps=1",
        "budget.tolerance=0.05",
        f"budget.n_tokens={n_tokens}",
        "evaluation.n_tokens=4096",
        "evaluation.sample_tokens=0",
        "tracking.wandb=disabled",
        f"seed={seed}",
        f"name=cost{n_cells}",
        f"runs_root={root}",
    ]
    return build_run(compose("train", overrides))[0]


def _train(configs: Sequence[TrainConfig], slots: Sequence[Slot]) -> None:
    prepare(configs[0].data)
    with open_pool(work, slots) as pool:
        raise_failures(pool.run([cell_job(c) for c in configs], Watcher()))


def _panels(found: Seconds) -> list[Panel]:
    def panel(x_name: str, y_name: str, unit: str, tail: int | None = None) -> Panel:
        taken = [(float(k.removesuffix(unit)), y) for k, y in found.items() if k.endswith(unit)]
        x, y = np.array(taken, dtype=np.float64).T
        return Panel(x_name=x_name, y_name=y_name, x=x, y=y, tail=tail)

    return [
        panel("cells", "wall seconds, start included", " cells"),
        panel("parameters (same tokens)", "seconds in steps", " parameters, steps", tail=3),
        panel("tokens (same model)", "seconds in steps", " tokens, steps", tail=len(TOKENS)),
        panel("parameters", "peak memory, GB", " parameters, GB"),
    ]


def growth(found: Seconds) -> Facts:
    """Return the lines and powers behind the figure."""
    cells, sizes, tokens, memory = (panel.fit() for panel in _panels(found))
    return {
        "a sweep's start, s": cells[1],
        "a cell more, s": cells[0],
        "seconds in steps grow as parameters to the power (three largest)": sizes[0],
        "seconds in steps grow as tokens to the power": tokens[0],
        "memory of a process before the model, GB": memory[1],
        "bytes more per parameter": memory[0] * 1e9,
    }


BENCH = Bench(keys={}, text={"picture": ""}, run=measure, facts=growth, packages=("torch", "numpy"))
