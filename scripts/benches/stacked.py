"""Runs of one shape stepped as one, beside the same runs one after another."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge import compose

from benches import Bench, BenchError, Facts, Seconds
from benches.pool import SOURCE
from llmtrain.corpus.prepare import prepare
from llmtrain.corpus.shards import open_corpus
from llmtrain.spec.plan import plan_run
from llmtrain.spec.settings import build_run
from llmtrain.training.runtime import pick_device, wait_for
from llmtrain.training.session import Session
from llmtrain.training.stacked import Stack

WARM_UP = 5  # steps of each side that are not timed
TOLERANCE = 1e-3  # of the mean loss, relative: else the two sides did not do the same


def make_sessions(keys: Mapping[str, Any], root: Path) -> list[Session]:
    """Return sessions of one shape with a seed each, on the device that runtime=default picks."""
    overrides = [
        "data=local",
        f"data.paths=[{root / 'text'}]",
        "data.name=bench",
        f"data.root={root / 'data'}",
        "data.max_epochs=1e6",
        f"model.d_model={keys['width']}",
        f"model.n_layers={keys['layers']}",
        f"model.d_head={min(64, keys['width'])}",
        "seq_len=t128",
        f"recipe.batch_tokens={keys['tokens']}",
        "budget.flops=null",
        "budget.min_steps=1",
        f"budget.n_tokens={keys['tokens'] * (keys['steps'] + WARM_UP) * 2}",
        "evaluation.n_tokens=4096",
        *keys["set"].split(),
    ]
    configs = [
        build_run(compose("train", [*overrides, f"seed={seed}"]))[0]
        for seed in range(keys["replicas"])
    ]
    corpus = open_corpus(prepare(configs[0].data))
    device = pick_device(configs[0].runtime)
    sessions = []
    for config in configs:
        plan = plan_run(config, vocab_size=corpus.manifest.vocab_size, unique_tokens=None)
        sessions.append(Session(config, plan, corpus, device))
    return sessions


def time_steps(keys: Mapping[str, Any]) -> Seconds:
    """Return the seconds of a step of every run, stacked and one after another.

    The two sides take turns, five steps each. Raises BenchError where their losses differ.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "text").mkdir()
        for i, path in enumerate(sorted(SOURCE.rglob("*.py"))):
            (root / "text" / f"{i}.txt").write_bytes(path.read_bytes())
        alone, stacked = make_sessions(keys, root), make_sessions(keys, root)
    stack = Stack(stacked)
    seconds = {"one after another": 0.0, "stacked": 0.0}
    for begin in range(-WARM_UP, keys["steps"], WARM_UP):
        for name, sides in (("one after another", alone), ("stacked", [stack])):
            before = time.perf_counter()
            for _ in range(WARM_UP):
                for side in sides:
                    side.train_step()
            wait_for(stack.sessions[0].device)
            seconds[name] += (time.perf_counter() - before) * (begin >= 0)
    for one, other in zip(alone, stacked, strict=True):
        if abs(one.drain_losses() / other.drain_losses() - 1.0) > TOLERANCE:
            raise BenchError(f"the losses of seed {one.config.seed} differ between the two sides")
    n_steps = -(-keys["steps"] // WARM_UP) * WARM_UP
    return {name: value / n_steps for name, value in seconds.items()}


def ratio(median: Seconds) -> Facts:
    """Return how many times longer the runs take one after another."""
    return {
        "milliseconds a step, stacked": 1e3 * median["stacked"],
        "one after another over stacked": median["one after another"] / median["stacked"],
    }


BENCH = Bench(
    keys={"replicas": "4", "width": "64", "layers": "2", "tokens": "2048", "steps": "20"},
    text={"set": ""},
    run=time_steps,
    facts=ratio,
    packages=("torch", "numpy"),
)
