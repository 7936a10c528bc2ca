"""Configurations that every room's tests share."""

import copy
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmtrain.corpus.prepare import prepare
from llmtrain.corpus.shards import Corpus, open_corpus
from llmtrain.spec.settings import TrainConfig, build_run

sys.path.insert(0, str(Path(__file__).parent))  # damage.py

# No test may reach the wandb account of whoever runs it.
os.environ["NETRC"] = os.devnull
os.environ.pop("WANDB_API_KEY", None)
os.environ.pop("COLUMNS", None)  # what no terminal reads has no width

ROOT = Path(__file__).resolve().parents[1]

RAW: dict[str, Any] = {
    "model": {
        "d_model": 32,
        "n_layers": 2,
        "d_head": 8,
        "ff_ratio": 4.0,
        "ff_multiple": 8,
        "activation": "relu2",
        "norm": "rmsnorm",
        "position": "rope",
        "rope_base": 10000.0,
        "qk_norm": False,
        "tied_head": False,
        "bias": False,
        "dropout": 0.0,
        "init_std": 0.02,
        "init": "fan_in",
        "parametrization": "standard",
        "base_d_model": 32,
    },
    "data": {
        "name": "tiny",
        "source": "local",
        "scope": "stdlib",
        "paths": ["text.txt"],
        "text_field": "text",
        "hub_path": None,
        "hub_config": None,
        "hub_split": None,
        "hub_revision": None,
        "max_bytes": None,
        "deduplicate": "none",
        "tokenizer": "bytes",
        "vocab_size": 256,
        "val_fraction": 0.1,
        "max_epochs": 4.0,
        "root": "data",
    },
    "optimizer": {
        "name": "adamw",
        "eps": 1e-8,
        "grad_clip": 1.0,
        "z_loss": 0.0,
        "muon_momentum": 0.95,
        "muon_lr_scale": 1.0,
    },
    "schedule": {
        "name": "cosine",
        "final_fraction": 0.1,
        "cooldown_fraction": 0.2,
        "cooldown_shape": "sqrt",
    },
    "seq_len": {
        "seq_len": 32,
        "mode": "reshape",
        "pacing": "none",
        "start": 8,
        "warmup_fraction": 0.25,
        "warmup_tokens": None,
        "root": 2.0,
        "multiple_of": 8,
    },
    "recipe": {
        "name": "fixed",
        "peak_lr": 0.01,
        "lr_multiplier": 1.0,
        "batch_tokens": 256,
        "warmup_tokens": 512,
        "beta1": 0.9,
        "beta2": 0.95,
        "weight_decay": 0.1,
    },
    "budget": {
        "flops": None,
        "n_tokens": 5120,
        "convention": "full_attention",
        "min_steps": 2,
        "tolerance": 0.005,
    },
    "evaluation": {"n_tokens": 512, "points": 1, "sample_tokens": 0},
    "runtime": {
        "device": "cpu",
        "dtype": "float32",
        "compile": False,
        "n_threads": 1,
        "micro_batch_tokens": None,
        "activation_checkpointing": False,
        "attention": "auto",
        "loss_head": "full",
        "peak_tflops": None,
        "parallel": "none",
        "cuda_graph": "off",
        "stack": 1,
        "memory_gb": None,
        "hang_s": None,
    },
    "checkpoint": {
        "every_s": 3600.0,
        "every_steps": None,
        "keep": 2,
        "background": True,
        "branch_at": [],
        "branch_from": None,
    },
    "guard": {"on_nonfinite": "stop", "max_skips": 10, "on_spike": "note"},
    "tracking": {
        "wandb": "disabled",
        "project": "llmtrain",
        "entity": None,
        "points": 20,
        "progress": False,
    },
    "bill": {
        "region": "world",
        "grams_per_kwh": None,
        "pue": 1.0,
        "device_watts": None,
        "price_per_hour": None,
        "currency": "USD",
        "assumed_mfu": None,
    },
    "seed": 0,
    "name": "test",
    "runs_root": "runs",
}


def make_config(changes: dict[str, Any] | None = None) -> TrainConfig:
    """Return the tiny run with dotted keys replaced, as in {"model.d_model": 64}."""
    raw = copy.deepcopy(RAW)
    for key, value in (changes or {}).items():
        *path, last = key.split(".")
        group = raw
        for part in path:
            group = group[part]
        group[last] = value
    return build_run(raw)[0]


@pytest.fixture(scope="session")
def make() -> Callable[..., TrainConfig]:
    """The function that builds a tiny run: 20 steps, a fraction of a second."""
    return make_config


@pytest.fixture
def raw() -> dict[str, Any]:
    """The same configuration as nested dictionaries, free to be changed."""
    return copy.deepcopy(RAW)


@pytest.fixture
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def text_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of forty small text files with some structure to learn."""
    folder = tmp_path_factory.mktemp("text")
    rng = random.Random(0)
    words = ["def", "return", "model", "loss", "tokens", "budget", "(", ")", ":", "=", "\n    "]
    for i in range(40):
        (folder / f"{i:02d}.txt").write_text(" ".join(rng.choices(words, k=600)), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_corpus_dir(text_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The forty files as a prepared corpus of bytes."""
    root = str(tmp_path_factory.mktemp("corpora"))
    return prepare(make_config({"data.paths": [str(text_files)], "data.root": root}).data)


@pytest.fixture(scope="session")
def corpus(tiny_corpus_dir: Path) -> Corpus:
    """That corpus, open."""
    return open_corpus(tiny_corpus_dir)
