"""One optimizer step by shape and option: tokens/s and MFU against the machine's own matmul."""

import dataclasses
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from edge import compose

from benches import Bench, Facts, Seconds, nanogpt
from llmtrain.corpus.prepare import prepare
from llmtrain.corpus.shards import Corpus, open_corpus
from llmtrain.spec.check import check
from llmtrain.spec.config import FlopsConvention
from llmtrain.spec.plan import RunPlan, plan_run
from llmtrain.spec.settings import TrainConfig, build_run
from llmtrain.training import roofline, runtime
from llmtrain.training.memory import free_memory
from llmtrain.training.session import Session
from llmtrain.training.warm import warm_up

VARIANTS = {
    "float32": ("runtime.dtype=float32", "runtime.compile=false"),
    "bfloat16": ("runtime.dtype=bfloat16", "runtime.compile=false"),
    "float32-compiled": ("runtime.dtype=float32", "runtime.compile=true"),
    "bfloat16-compiled": ("runtime.dtype=bfloat16", "runtime.compile=true"),
    "bfloat16-cudnn": ("runtime.dtype=bfloat16", "runtime.compile=true", "runtime.attention=cudnn"),
    "bfloat16-graph": ("runtime.dtype=bfloat16", "runtime.cuda_graph=on"),
    "bfloat16-compiled-graph": (
        "runtime.dtype=bfloat16",
        "runtime.compile=true",
        "runtime.cuda_graph=on",
    ),
    "chunked": ("runtime.dtype=float32", "runtime.loss_head=chunked"),
    "bfloat16-chunked": ("runtime.dtype=bfloat16", "runtime.loss_head=chunked"),
}
COUNTS: dict[str, FlopsConvention] = {"causal": "causal_attention", "full": "full_attention"}
ROUND = 5
"""Steps of one variant before the next one has its turn; fewer where there are few in all."""
SETTLE = 5
"""Steps before any is timed, and not more than are."""


def time_steps(keys: Mapping[str, Any]) -> Seconds:
    """Return tokens per second, MFU and memory of every shape under every variant.

    The variants of a shape take turns, so that all meet the same load; the median step counts.
    Attention is counted causal (half) and full, both over the matmul rate measured just before.
    A peer follows each shape, on the same device, in the first variant's dtype where it can.
    """
    variants = keys["variants"].split(",")
    for name in variants:
        check(name in VARIANTS, f"variants: {name!r} is not one of {', '.join(VARIANTS)}")
    peer = nanogpt.checkout(keys["peer"]) if keys["peer"] else None
    found: Seconds = {}
    with tempfile.TemporaryDirectory() as root:
        for model in keys["models"].split(","):
            configs = {name: _config(model, name, keys, root) for name in variants}
            corpus = _widened(open_corpus(prepare(configs[variants[0]].data)), keys["vocab"])
            device = runtime.pick_device(configs[variants[0]].runtime)
            if not found:
                found = roofline.ceilings(device)
            sessions = {name: _session(config, corpus) for name, config in configs.items()}
            found |= _shape(model, sessions, keys["steps"], found)
            plan = sessions[variants[0]].plan
            del sessions
            free_memory()  # for the peer, or the next shape
            if peer is not None:
                rate = _peer_rate(peer, configs[variants[0]], plan, device.type, corpus)
                found[f"{model} {nanogpt.PEER}, tokens/s"] = rate
    return found


def _peer_rate(
    peer: Path, config: TrainConfig, plan: RunPlan, device: str, corpus: Corpus
) -> float:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "peer"
        nanogpt.set_up(peer, root, corpus.train, corpus.manifest.vocab_size)
        return nanogpt.tokens_per_second(
            root,
            config.model,
            rows=plan.batch_tokens // plan.block_len,
            row_len=plan.block_len,
            lr=plan.hyper.peak_lr,
            n_threads=config.runtime.n_threads,
            device=device,
            dtype=config.runtime.dtype,
        )


def _config(model: str, variant: str, keys: Mapping[str, Any], root: str) -> TrainConfig:
    tokens = keys["tokens"]
    overrides = [
        f"model={model}",
        f"seq_len.seq_len={keys['seq_len']}",
        f"recipe.batch_tokens={tokens}",
        "budget.flops=null",
        f"budget.n_tokens={tokens * 1000}",
        "data.max_epochs=1e6",
        f"runs_root={Path(root)}",
        *VARIANTS[variant],
    ]
    return build_run(compose("train", overrides))[0]


def _widened(corpus: Corpus, vocab_size: int) -> Corpus:
    """Return the corpus under a vocabulary of which its text uses the first tokens alone."""
    least = corpus.manifest.vocab_size
    check(vocab_size >= least, f"vocab={vocab_size} is less than the text's {least}")
    return dataclasses.replace(
        corpus, manifest=dataclasses.replace(corpus.manifest, vocab_size=vocab_size)
    )


def _session(config: TrainConfig, corpus: Corpus) -> Session:
    plan = plan_run(config, vocab_size=corpus.manifest.vocab_size, unique_tokens=None)
    few = dataclasses.replace(config.evaluation, n_tokens=2 * config.seq_len.seq_len)
    device = runtime.pick_device(config.runtime)
    return Session(dataclasses.replace(config, evaluation=few), plan, corpus, device)


def _shape(
    model: str, sessions: Mapping[str, Session], n_steps: int, ceilings: Mapping[str, float]
) -> Seconds:
    memory = {}
    for name, session in sessions.items():
        held = roofline.held_memory(session.device)  # the other variants' too
        runtime.reset_peak_memory(session.device)
        for _ in warm_up(session):
            pass
        _take(session, min(SETTLE, n_steps))
        memory[name] = _memory(session) - held
    steps: dict[str, list[float]] = {name: [] for name in sessions}
    in_turn = max(1, min(ROUND, n_steps // ROUND))
    for _ in range(n_steps // in_turn):
        for name, session in sessions.items():
            steps[name].append(_take(session, in_turn) / in_turn)
    found: Seconds = {}
    for name, session in sessions.items():
        plan = session.plan
        rate = plan.batch_tokens / median(steps[name])
        peak = ceilings[f"matmul {session.config.runtime.dtype}, GFLOP/s"] * 1e9
        found[f"{model} {name}, tokens/s"] = rate
        for count, convention in COUNTS.items():
            per_token = plan.flops[convention] / plan.n_tokens
            found[f"{model} {name}, MFU {count}, %"] = 100 * per_token * rate / peak
        found[f"{model} {name}, GB"] = memory[name] / 1e9
        if cold := session.seconds["compile"]:
            found[f"{model} {name}, compile, s"] = cold
    return found


def _memory(session: Session) -> int:
    """Return the peak so far on a GPU; on a CPU that of one more step, weights and moments aside.

    A process on a CPU has one peak, for all variants.
    """
    if session.device.type == "cuda":
        return runtime.peak_memory_bytes(session.device)
    return roofline.peak_allocated(lambda: _take(session, 1))


def _take(session: Session, n_steps: int) -> float:
    """Return the seconds of some steps, the wait for the device and the losses included."""
    roofline.wait(session.device)
    begin = time.perf_counter()
    for _ in range(n_steps):
        session.train_step()
    session.drain_losses()
    roofline.wait(session.device)
    return time.perf_counter() - begin


def ratios(found: Seconds) -> Facts:
    """Return how many times faster each variant is than the first one of its shape, and a peer."""
    rates = {name: value for name, value in found.items() if name.endswith(", tokens/s")}
    first: dict[str, float] = {}
    facts: Facts = {}
    for name, value in rates.items():
        model, _, variant = name.removesuffix(", tokens/s").partition(" ")
        if variant == nanogpt.PEER:
            continue
        base = first.setdefault(model, value)
        if base is not value:
            facts[f"{model} {variant}, times the first"] = value / base
        if peer := rates.get(f"{model} {nanogpt.PEER}, tokens/s"):
            facts[f"{model} {variant}, times {nanogpt.PEER}"] = value / peer
    return facts


BENCH = Bench(
    column="as named",
    keys={"steps": "50", "tokens": "4096", "seq_len": "128", "vocab": "256"},
    text={"models": "w32d2,w64d4,w128d4", "variants": "float32,bfloat16", "peer": ""},
    run=time_steps,
    facts=ratios,
    packages=("torch", "numpy"),
)
