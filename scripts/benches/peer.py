"""A sweep's cells beside nanoGPT's own training loop: same shapes, batches and text."""

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from edge import compose

from benches import Bench, Facts, Seconds, finished
from benches.nanogpt import PEER, checkout, set_up, tokens_per_second
from llmtrain.corpus.manifest import read_manifest
from llmtrain.corpus.prepare import prepare
from llmtrain.corpus.shards import open_corpus
from llmtrain.spec.check import check
from llmtrain.spec.settings import TrainConfig, build_run
from llmtrain.sweep.drain import cell_job
from llmtrain.sweep.grid import Cell, plan_sweep
from llmtrain.sweep.pool import Watcher, make_slots, open_pool
from llmtrain.sweep.process import Slot
from llmtrain.sweep.sweeper import raise_failures
from llmtrain.training.worker import work

OWN = "llmtrain"
OWN_STEPS = 200


def time_both(keys: Mapping[str, Any]) -> Seconds:
    """Return the seconds of the cells' tokens on both sides, shape by shape, at measured speeds.

    The peer runs as its own program: one process, eager, float32, as many threads as cores. Ours
    runs as a sweep does: a warm worker of one thread on every core, each training the same cell.
    Start-up, evaluation and checkpoints are left out on both sides. Raises ConfigError where
    `peer` is no checkout of nanoGPT.
    """
    peer = checkout(keys["peer"])
    overrides = [f"sweep={keys['sweep']}", *keys["set"].split(), "tracking.wandb=disabled"]
    config, sweep = build_run(compose("train", overrides))
    check(sweep is not None, f"sweep={keys['sweep']} has no cells: name a sweep, such as demo")
    assert sweep is not None
    manifest = read_manifest(directory := prepare(config.data))
    cells = plan_sweep(config, sweep, unique_tokens=manifest.train.n_tokens).cells
    groups, slots = list(_shapes(cells)), make_slots(1)
    seconds: Seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        set_up(peer, root / "peer", open_corpus(directory).train, manifest.vocab_size)
        for cell, *others in groups:  # one side after the other, so that both meet the same load
            theirs = _peer_rate(root / "peer", cell, n_threads=len(slots))
            ours = _own_rate(cell, slots, root / "runs")
            n_tokens = sum(each.plan.n_tokens for each in (cell, *others))
            model = cell.config.model
            name = f"w{model.d_model}d{model.n_layers}, {cell.plan.batch_tokens} tokens a step"
            seconds |= {f"{name}: {PEER}": n_tokens / theirs, f"{name}: {OWN}": n_tokens / ours}
    return seconds


def ratios(seconds: Seconds) -> Facts:
    """Return how many times faster our side is: over all cells, and by shape."""
    theirs = {k.rpartition(":")[0]: v for k, v in seconds.items() if k.endswith(PEER)}
    ours = {k.rpartition(":")[0]: v for k, v in seconds.items() if k.endswith(OWN)}
    by_shape = {name: theirs[name] / ours[name] for name in theirs}
    return {
        "times faster, all cells": sum(theirs.values()) / sum(ours.values()),
        "least of a shape": min(by_shape.values()),
        "most of a shape": max(by_shape.values()),
    }


def _shapes(cells: tuple[Cell, ...]) -> Iterator[list[Cell]]:
    def key(cell: Cell) -> tuple[int, int, int]:
        return cell.config.model.d_model, cell.config.model.n_layers, cell.plan.batch_tokens

    for _, group in groupby(sorted(cells, key=key), key=key):
        yield list(group)


def _peer_rate(root: Path, cell: Cell, n_threads: int) -> float:
    plan = cell.plan
    return tokens_per_second(
        root,
        cell.config.model,
        rows=plan.batch_tokens // plan.block_len,
        row_len=plan.block_len,
        lr=plan.hyper.peak_lr,
        n_threads=n_threads,
    )


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


BENCH = Bench(
    keys={},
    text={"peer": "", "sweep": "demo", "set": ""},
    run=time_both,
    facts=ratios,
    packages=("torch", "numpy"),
)
