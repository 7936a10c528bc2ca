"""The fixed cost of a run: T(tokens) = a + tokens / rate, in a warm process and in a new one."""

import dataclasses
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from edge import compose

from benches import Bench, Facts, Seconds, finished
from benches.alone import compare, train_alone
from llmtrain.corpus.prepare import prepare
from llmtrain.spec.settings import RuntimeConfig, build_run
from llmtrain.training.worker import work

LENGTHS = (1, 3, 10)
"""Lengths of the runs, times `tokens`."""
SIDES = ("warm", "a process each")
PEAK, TOKEN = "matmul, GFLOP/s", "a token, MFLOP"


def time_runs(keys: Mapping[str, Any]) -> Seconds:
    """Return the wall seconds of runs of three lengths: warm, and as a command each.

    Warm: in a process that has trained this shape before, as a sweep's worker has.
    """
    found: Seconds = {}
    with tempfile.TemporaryDirectory() as root:
        first = _overrides(keys, LENGTHS[0], f"{root}/first")
        config = build_run(compose("train", first))[0]
        prepare(config.data)
        work({"config": dataclasses.asdict(config)}, lambda _: None)  # imports, corpus, shape
        for times in LENGTHS:
            n_tokens = times * keys["tokens"]
            overrides = _overrides(keys, times, f"{root}/warm")
            warm = build_run(compose("train", overrides))[0]
            begin = time.perf_counter()
            work({"config": dataclasses.asdict(warm)}, lambda _: None)
            found[name_of(SIDES[0], n_tokens)] = time.perf_counter() - begin
            alone = _overrides(keys, times, f"{root}/alone")
            begin = time.perf_counter()
            train_alone(alone)
            found[name_of(SIDES[1], n_tokens)] = time.perf_counter() - begin
            compare(warm, build_run(compose("train", alone))[0])
        found[PEAK] = _peak(warm.runtime) / 1e9
        flops = finished(warm).flops["full_attention"]
        found[TOKEN] = flops / (LENGTHS[-1] * keys["tokens"]) / 1e6
    return found


def _peak(config: RuntimeConfig) -> float:
    """Return the matmul FLOP/s of one worker in the run's dtype, measured here."""
    from llmtrain.training import roofline, runtime  # noqa: PLC0415 - torch, after the first run

    return roofline.matmul_flops(runtime.pick_device(config), config.dtype)


def _overrides(keys: Mapping[str, Any], times: int, root: str) -> list[str]:
    return [
        f"model={keys['model']}",
        "recipe.batch_tokens=4096",
        "budget.flops=null",
        "budget.min_steps=1",
        f"budget.n_tokens={times * keys['tokens']}",
        "tracking.wandb=disabled",
        f"runs_root={root}",
        *keys["set"].split(),
    ]


def name_of(side: str, n_tokens: int) -> str:
    """Return the name of a measurement."""
    return f"{side}, {n_tokens} tokens"


def fixed_costs(found: Seconds) -> Facts:
    """Return intercept and slope of each side's line, least squares of relative errors.

    The slope as tokens per second, and as MFU (full attention) over the measured matmul.
    """
    facts: Facts = {}
    for side in SIDES:
        points = [
            (int(name.split()[-2]), seconds)
            for name, seconds in found.items()
            if name.startswith(f"{side}, ")
        ]
        n_tokens, seconds = np.array(points, dtype=np.float64).T
        slope, fixed = np.polyfit(n_tokens, seconds, 1, w=1.0 / seconds)
        facts[f"{side}: fixed cost of a run, s"] = float(fixed)
        facts[f"{side}: steady tokens/s"] = rate = float(1.0 / slope)
        facts[f"{side}: steady MFU, %"] = 100 * rate * found[TOKEN] / found[PEAK] / 1e3
    return facts


BENCH = Bench(
    keys={"tokens": "102400"},
    text={"model": "w32d2", "set": ""},
    run=time_runs,
    facts=fixed_costs,
    column="as named",
    packages=("torch", "numpy", "hydra-core"),
)
