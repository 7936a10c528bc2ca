"""The demo's cells beside nanoGPT's own training loop: same shapes, batches, text and precision."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from edge import compose

from benches import Bench, Facts, Seconds, finished
from llmtrain.corpus.manifest import read_manifest
from llmtrain.corpus.prepare import prepare
from llmtrain.corpus.shards import open_corpus
from llmtrain.spec.errors import ConfigError
from llmtrain.spec.settings import TrainConfig, build_run
from llmtrain.sweep.drain import cell_job
from llmtrain.sweep.grid import Cell, plan_sweep
from llmtrain.sweep.pool import Watcher, make_slots, open_pool
from llmtrain.sweep.process import Slot
from llmtrain.sweep.sweeper import raise_failures
from llmtrain.training.worker import work

PEER, OWN = "nanoGPT", "llmtrain"
PEER_FILES = ("train.py", "model.py", "configurator.py")
PEER_STEPS, OWN_STEPS = 60, 200
SETTLE = 10
"""Steps of the peer that are not timed."""
ITERATION = re.compile(r"iter (\d+): .* time ([0-9.]+)ms")
# What its train.py reads its vocabulary from: {'vocab_size': 256} in the oldest, textual protocol.
META = b"(dS'vocab_size'\nI256\ns."


def time_both(keys: Mapping[str, Any]) -> Seconds:
    """Return the seconds of the demo's tokens on both sides, shape by shape, at measured speeds.

    The peer runs as its own program: one process, eager, float32, as many threads as cores. Ours
    runs as a sweep does: a warm worker of one thread on every core, each training the same cell.
    Start-up, evaluation and checkpoints are left out on both sides. Raises ConfigError where
    `peer` is no checkout of nanoGPT.
    """
    peer = Path(keys["peer"]).resolve()
    missing = [name for name in PEER_FILES if not (peer / name).is_file()]
    if not keys["peer"] or missing:
        raise ConfigError(f"peer={keys['peer']!r} has no {PEER_FILES[0]}: give a nanoGPT checkout")
    config, sweep = build_run(compose("train", ["sweep=demo", "tracking.wandb=disabled"]))
    assert sweep is not None
    manifest = read_manifest(directory := prepare(config.data))
    cells = plan_sweep(config, sweep, unique_tokens=manifest.train.n_tokens).cells
    groups, slots = list(_shapes(cells)), make_slots(1)
    seconds: Seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _set_up(peer, root / "peer", open_corpus(directory).train)
        for cell, *others in groups:  # one side after the other, so that both meet the same load
            theirs = _peer_rate(root / "peer", cell, len(slots))
            ours = _own_rate(cell, slots, root / "runs")
            n_tokens = sum(each.plan.n_tokens for each in (cell, *others))
            model = cell.config.model
            name = f"w{model.d_model}d{model.n_layers}, {cell.plan.batch_tokens} tokens a step"
            seconds |= {f"{name}: {PEER}": n_tokens / theirs, f"{name}: {OWN}": n_tokens / ours}
    return seconds


def ratios(seconds: Seconds) -> Facts:
    """Return how many times faster our side is: over all cells of the demo, and by shape."""
    theirs = {k.rpartition(":")[0]: v for k, v in seconds.items() if k.endswith(PEER)}
    ours = {k.rpartition(":")[0]: v for k, v in seconds.items() if k.endswith(OWN)}
    by_shape = {name: theirs[name] / ours[name] for name in theirs}
    return {
        "times faster, all cells of the demo": sum(theirs.values()) / sum(ours.values()),
        "least of a shape": min(by_shape.values()),
        "most of a shape": max(by_shape.values()),
    }


def _shapes(cells: tuple[Cell, ...]) -> Iterator[list[Cell]]:
    def key(cell: Cell) -> tuple[int, int, int]:
        return cell.config.model.d_model, cell.config.model.n_layers, cell.plan.batch_tokens

    for _, group in groupby(sorted(cells, key=key), key=key):
        yield list(group)


def _set_up(peer: Path, root: Path, tokens: np.ndarray) -> None:
    data = root / "data" / "bench"
    data.mkdir(parents=True)
    for name in PEER_FILES:
        shutil.copy(peer / name, root / name)
    for name in ("train.bin", "val.bin"):
        np.asarray(tokens[:4_000_000]).astype(np.uint16).tofile(data / name)
    (data / "meta.pkl").write_bytes(META)


def _peer_rate(root: Path, cell: Cell, n_threads: int) -> float:
    """Return the peer's tokens per second: the median step after it has settled."""
    plan, model = cell.plan, cell.config.model
    rows = plan.batch_tokens // plan.block_len
    arguments = {
        "dataset": "bench", "device": "cpu", "compile": False, "dtype": "float32",
        "eval_interval": 10**6, "eval_iters": 1, "log_interval": 1, "dropout": 0.0,
        "always_save_checkpoint": False, "out_dir": str(root / "out"),
        "gradient_accumulation_steps": 1, "batch_size": rows, "block_size": plan.block_len,
        "n_layer": model.n_layers, "n_head": model.n_heads, "n_embd": model.d_model,
        "max_iters": PEER_STEPS, "lr_decay_iters": PEER_STEPS, "warmup_iters": 10,
        "learning_rate": plan.hyper.peak_lr,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "train.py", *(f"--{key}={value}" for key, value in arguments.items())],
        cwd=root,
        env=os.environ | {"OMP_NUM_THREADS": str(n_threads)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    steps = [float(ms) for k, ms in ITERATION.findall(done.stdout) if int(k) > SETTLE]
    if done.returncode != 0 or not steps:
        raise ConfigError(f"the peer's train.py failed: {done.stderr.strip().splitlines()[-1:]}")
    return plan.batch_tokens / median(steps) * 1e3


def _own_rate(cell: Cell, slots: list[Slot], runs_root: Path) -> float:
    """Return tokens per second of all warm workers together, the cell on every core at once."""
    configs = [_shortened(cell, seed, runs_root) for seed, _ in enumerate(slots)]
    with open_pool(work, slots) as pool:
        raise_failures(pool.run([cell_job(c) for c in configs], Watcher()))
    return sum(finished(config).tokens_per_second for config in configs)


def _shortened(cell: Cell, seed: int, runs_root: Path) -> TrainConfig:
    """Return the cell cut to OWN_STEPS steps of the same batch, with the least evaluation."""
    config, plan = cell.config, cell.plan
    return dataclasses.replace(
        config,
        seed=seed,
        name="bench",
        runs_root=str(runs_root),
        budget=dataclasses.replace(
            config.budget, flops=None, n_tokens=OWN_STEPS * plan.batch_tokens
        ),
        recipe=dataclasses.replace(config.recipe, batch_tokens=plan.batch_tokens),
        evaluation=dataclasses.replace(
            config.evaluation, n_tokens=2 * plan.block_len, points=1, sample_tokens=0
        ),
        tracking=dataclasses.replace(  # rows as far apart as in the whole cell
            config.tracking, points=max(1, config.tracking.points * OWN_STEPS // plan.n_steps)
        ),
    )


BENCH = Bench(keys={}, text={"peer": ""}, run=time_both, facts=ratios, packages=("torch", "numpy"))
