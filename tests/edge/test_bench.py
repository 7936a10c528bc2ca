"""scripts/bench.py times real parts, stage by stage, and says on what machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from benches import cost, nanogpt, run, step, sweep
from edge import compose

from llmtrain.spec.build import build
from llmtrain.spec.config import ModelConfig
from llmtrain.spec.errors import ConfigError

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench.py"


def bench(*overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *overrides], capture_output=True, text=True, check=False
    )


def test_a_bench_prints_its_stages_and_writes_them_with_the_machine(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    done = bench("what=analysis", "repeats=1", "draws=20", f"out={out}")
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text(encoding="utf-8"))
    stages = document["median"]
    assert stages["all"] == pytest.approx(
        sum(value for name, value in stages.items() if name != "all")
    )
    assert {"numpy", "scipy", "cores"} <= set(document["machine"])
    assert f"{stages['all']:.4g}" in done.stdout


@pytest.mark.slow
def test_the_pool_bench_does_the_same_work_warm_and_cold_and_says_how_it_came_about(
    tmp_path: Path,
) -> None:
    out = tmp_path / "bench.json"
    done = bench("what=pool", "repeats=1", "cells=2", "steps=2", f"out={out}")
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text(encoding="utf-8"))
    stages = document["median"]
    ratio = stages["a process each"] / stages["warm workers"]
    assert document["facts"]["cold over warm"] == pytest.approx(ratio)
    assert document["command"].startswith("python scripts/bench.py what=pool repeats=1 cells=2")
    assert {"cpu", "load", "torch", "code"} <= set(document["machine"])


@pytest.mark.slow
def test_the_stacked_bench_times_the_same_runs_twice(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    done = bench("what=stacked", "repeats=1", "replicas=2", "width=16", "steps=5", f"out={out}")
    assert done.returncode == 0, done.stderr  # other losses on one side would be an error
    document = json.loads(out.read_text(encoding="utf-8"))
    stages = document["median"]
    ratio = stages["one after another"] / stages["stacked"]
    assert document["facts"]["one after another over stacked"] == pytest.approx(ratio)


@pytest.mark.slow
def test_the_compile_bench_trains_the_same_cells_three_times(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    done = bench("what=compile", "repeats=1", "cells=2", "steps=4", f"out={out}")
    assert done.returncode == 0, done.stderr  # other losses on one side would be an error
    document = json.loads(out.read_text(encoding="utf-8"))
    stages = document["median"]
    for side in ("alone", "ahead", "compiled before"):
        parts = [stages[f"{side}: cell {i} compiles"] for i in (1, 2)]
        assert stages[f"{side}: all cells compile"] == pytest.approx(sum(parts))
    ratio = stages["alone: wall"] / stages["compiled before: wall"]
    assert document["facts"]["alone over compiled before, wall"] == pytest.approx(ratio)


@pytest.mark.parametrize("override", ["what=nothing", "colour=red", "repeats=many"])
def test_a_bench_refuses_what_it_does_not_know(override: str) -> None:
    done = bench(override)
    assert done.returncode == 2
    assert done.stderr.startswith("bench.py: ")


def test_the_fixed_cost_is_the_intercept_of_planted_runs() -> None:
    planted = {
        run.name_of(side, n_tokens): fixed + n_tokens / 5e4
        for side, fixed in zip(run.SIDES, (0.25, 4.0), strict=True)
        for n_tokens in (10_000, 30_000, 100_000)
    } | {run.PEAK: 100.0, run.TOKEN: 0.5}
    facts = run.fixed_costs(planted)
    assert facts["warm: fixed cost of a run, s"] == pytest.approx(0.25)
    assert facts["a process each: fixed cost of a run, s"] == pytest.approx(4.0)
    assert facts["warm: steady tokens/s"] == pytest.approx(5e4)
    assert facts["warm: steady MFU, %"] == pytest.approx(25.0)  # 5e4 x 5e5 of 1e11


def test_planted_growth_is_found() -> None:
    planted = {f"{n} cells": 2.0 + 0.5 * n for n in cost.CELLS}
    sizes = (10_000, 40_000, 90_000, 250_000)
    planted |= {f"{n} parameters, steps": 3e-6 * n**1.1 for n in sizes}
    planted |= {f"{n} parameters, GB": 0.4 + 16e-9 * n for n in sizes}
    planted |= {f"{n} tokens, steps": 2e-5 * n for n in cost.TOKENS}
    assert list(cost.growth(planted).values()) == pytest.approx([2.0, 0.5, 1.1, 1.0, 0.4, 16.0])


def test_a_sweep_on_two_slots_that_reaches_half_its_peak_is_called_so() -> None:
    planted = {
        sweep.WALL: 10.0,
        sweep.FIT: 2.0,
        "slots: train": 15.0,
        "slots: evaluate": 1.0,
        sweep.IDLE: 4.0,
        sweep.NOMINAL: 500.0,
        sweep.SPENT: 400.0,
        sweep.PEAK: 100.0,
    }
    facts = sweep.shares(planted)
    assert facts["sweep MFU over the measured matmul, FLOPs of all cells, %"] == pytest.approx(50)
    assert facts["sweep MFU over the measured matmul, FLOPs spent, %"] == pytest.approx(40)
    assert facts["seconds to the fitted curve"] == 12.0
    assert sum(v for k, v in facts.items() if k.startswith("share")) == pytest.approx(100)


def test_variants_are_compared_within_their_shape() -> None:
    planted = {"a float32, tokens/s": 10.0, "a bfloat16, tokens/s": 15.0}
    planted |= {"b float32, tokens/s": 8.0, "b bfloat16, tokens/s": 4.0, "copy, GB/s": 1.0}
    facts = step.ratios(planted)
    assert facts == {"a bfloat16, times the first": 1.5, "b bfloat16, times the first": 0.5}
    facts = step.ratios(planted | {"b nanoGPT, tokens/s": 2.0})
    assert facts["b float32, times nanoGPT"] == 4.0
    assert facts["b bfloat16, times nanoGPT"] == 2.0
    assert len(facts) == 4


@pytest.mark.slow
def test_a_sweep_with_two_cells_on_a_device_and_no_law_is_measured(tmp_path: Path) -> None:
    tiny = (
        "sweep.name=tiny sweep.budgets=[1e9] sweep.widths=[8,12,16] sweep.depths=[1] "
        "sweep.aspect_min=4 sweep.n_heads=1 sweep.sizes_per_budget=2 sweep.span=2 "
        "sweep.optimum_flops=1e9 sweep.optimum_params=6e3 model=demo seq_len.seq_len=32 "
        "recipe.batch_tokens=256 evaluation.n_tokens=512 budget.min_steps=5 budget.tolerance=0.05"
    )
    out = tmp_path / "sweep.json"
    keys = ("sweep=isoflop", "per_device=2", f"set={tiny}", "repeats=1")
    done = bench("what=sweep", *keys, f"out={out}")
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))["median"]
    used = sum(seconds for name, seconds in found.items() if name.startswith("slots: "))
    n_cores = len(os.sched_getaffinity(0))
    if not torch.cuda.is_available():
        assert used == pytest.approx(2 * n_cores * found[sweep.WALL])
    assert found[sweep.NOMINAL] == pytest.approx(2.0, rel=0.1)  # two cells


# Takes nanoGPT's arguments and text, and prints its lines: after ten slow steps most take 2 ms.
STAND_IN = """
import pickle, sys
given = dict(argument[2:].split("=") for argument in sys.argv[1:])
assert pickle.load(open("data/bench/meta.pkl", "rb")) == {"vocab_size": 300}
assert open("data/bench/train.bin", "rb").read() == bytes([1, 0, 43, 1])
assert [given[k] for k in ("n_layer", "n_head", "n_embd", "bias")] == ["3", "4", "32", "True"]
assert [given[k] for k in ("batch_size", "block_size", "device")] == ["5", "64", "cpu"]
assert [given[k] for k in ("compile", "dtype")] == ["False", "float32"]
for i in range(int(given["max_iters"]) + 1):
    ms = 2.0 if i > 50 or (i > 10 and i % 2) else 90.0
    print(f"iter {i}: loss 1.0000, time {ms:.2f}ms, mfu 1.00%")
"""


def test_a_peer_gets_our_shape_and_text_and_its_settled_steps_count(tmp_path: Path) -> None:
    peer, root = tmp_path / "peer", tmp_path / "run"
    raw = {"d_model": 32, "n_layers": 3, "d_head": 8, "bias": True}
    model = build(ModelConfig, compose("train", ["model=base"])["model"] | raw)
    with pytest.raises(ConfigError, match=r"has no train\.py: give a nanoGPT checkout"):
        nanogpt.checkout(str(peer))
    peer.mkdir()
    for name in nanogpt.FILES:
        (peer / name).write_text(STAND_IN, encoding="utf-8")
    nanogpt.set_up(nanogpt.checkout(str(peer)), root, np.array([1, 299]), 300)
    shape = {"rows": 5, "row_len": 64, "lr": 1e-3, "n_threads": 1, "dtype": "bfloat16"}
    assert nanogpt.tokens_per_second(root, model, **shape) == pytest.approx(5 * 64 / 2e-3)
    with pytest.raises(ConfigError, match=r"the peer's train\.py failed: .*AssertionError"):
        nanogpt.tokens_per_second(root, model, **(shape | {"rows": 6}))


@pytest.mark.slow
def test_steps_and_runs_are_measured(tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    keys = ("models=w16d2", "variants=float32,bfloat16", "steps=10", "tokens=1024", "seq_len=64")
    done = bench("what=step", "repeats=1", *keys, f"out={out}")
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))["median"]
    counts = [found[f"w16d2 float32, MFU {count}, %"] for count in ("causal", "full")]
    # (6 N + 6 L d T) over (6 N + 12 L d T), for N = 10,240, L = 2, d = 16, T = 64.
    N, attention = 10_240, 6 * 2 * 16 * 64
    assert found["small kernel, us"] > 0
    assert counts[0] / counts[1] == pytest.approx((6 * N + attention) / (6 * N + 2 * attention))
    keys = ("models=w16d2", "variants=float32,chunked", "vocab=8192", "steps=2", "tokens=1024")
    done = bench("what=step", "repeats=1", *keys, f"out={out}")
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))["median"]
    full, chunked = (found[f"w16d2 {variant}, GB"] for variant in ("float32", "chunked"))
    assert 0 < chunked < full / 2
    done = bench("what=run", "repeats=1", "model=w16d2", "tokens=8192", f"out={out}")
    assert done.returncode == 0, done.stderr
    facts = json.loads(out.read_text(encoding="utf-8"))["facts"]
    fixed = [facts[f"{side}: fixed cost of a run, s"] for side in run.SIDES]
    assert np.isfinite(fixed).all()
