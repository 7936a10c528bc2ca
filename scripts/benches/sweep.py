"""A sweep from the command to the fitted curve: where its time goes, and its MFU."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge import compose

from benches import Bench, BenchError, Facts, Seconds
from benches.alone import TRAIN
from llmtrain.corpus.prepare import prepare
from llmtrain.spec.errors import FitRefusedError
from llmtrain.spec.settings import RuntimeConfig, build_run
from llmtrain.sweep.pool import make_slots

ANALYZE = TRAIN.with_name("analyze.py")
WALL, FIT, PEAK = "command to last record", "analysis", "matmul of all devices, GFLOP/s"
NOMINAL, SPENT = "FLOPs of all cells, GFLOP", "FLOPs spent, GFLOP"
IDLE = "slots: idle, between cells, starting"


def time_sweep(keys: Mapping[str, Any]) -> Seconds:
    """Return the seconds of a whole sweep and of its analysis, and of the slots' time by use.

    The slots' seconds add up to slots x wall; the corpus is prepared before. Slots that share a
    device share its peak. A law that the analysis refuses takes its time all the same.
    """
    overrides = [f"sweep={keys['sweep']}", *keys["set"].split()]
    config = build_run(compose("train", overrides))[0]
    prepare(config.data)
    n_devices, n_slots = len(make_slots(1)), len(make_slots(keys["per_device"]))
    with tempfile.TemporaryDirectory() as root:
        own = [*overrides, f"runs_root={root}", "tracking.wandb=disabled"]
        own.append(f"hydra.launcher.per_device={keys['per_device']}")
        begin = time.perf_counter()
        _run([str(TRAIN), *own])
        trained = time.perf_counter()
        (folder,) = (path for path in Path(root).iterdir() if path.is_dir())
        _run([str(ANALYZE), f"runs={folder}", f"out={root}/report"], FitRefusedError.exit_code)
        wall, fit = trained - begin, time.perf_counter() - trained
        records = [json.loads(p.read_text(encoding="utf-8")) for p in folder.glob("*/record.json")]
    parts = sorted({part for record in records for part in record["seconds"]})
    spent = {part: sum(record["seconds"][part] for record in records) for part in parts}
    return {
        WALL: wall,
        FIT: fit,
        **{f"slots: {part}": seconds for part, seconds in spent.items()},
        IDLE: n_slots * wall - sum(spent.values()),
        NOMINAL: sum(record["flops"]["full_attention"] for record in records) / 1e9,
        SPENT: sum(record["flops_spent"] for record in records) / 1e9,
        PEAK: n_devices * _peak(config.runtime) / 1e9,
    }


def _run(command: Sequence[str], *also_done: int) -> None:
    done = subprocess.run(
        [sys.executable, *command], check=False, capture_output=True, text=True, timeout=3600
    )
    if done.returncode not in (0, *also_done):
        raise BenchError(f"{Path(command[0]).name} failed: {done.stderr.strip()}")


def _peak(config: RuntimeConfig) -> float:
    """Return the matmul FLOP/s of one device: of a GPU, or of a CPU's one thread."""
    from llmtrain.training import roofline, runtime  # noqa: PLC0415 - torch, after the sweep

    device = runtime.pick_device(config)
    return roofline.matmul_flops(device, "bfloat16" if device.type == "cuda" else "float32")


def shares(found: Seconds) -> Facts:
    """Return the sweep's MFU, on all FLOPs and on those spent, and the shares of its time."""
    slots = {name: seconds for name, seconds in found.items() if name.startswith("slots: ")}
    whole = sum(slots.values())
    reached = found[WALL] * found[PEAK]
    return {
        "sweep MFU over the measured matmul, FLOPs of all cells, %": 100 * found[NOMINAL] / reached,
        "sweep MFU over the measured matmul, FLOPs spent, %": 100 * found[SPENT] / reached,
        "seconds to the fitted curve": found[WALL] + found[FIT],
        **{f"share of {name}, %": 100 * seconds / whole for name, seconds in slots.items()},
    }


BENCH = Bench(
    column="as named",
    keys={"per_device": "1"},
    text={"sweep": "demo", "set": ""},
    run=time_sweep,
    facts=shares,
    packages=("torch", "numpy", "scipy"),
)
