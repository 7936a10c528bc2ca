"""nanoGPT's own training loop, run as the program it is, on text and shapes of ours."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

import numpy as np

from llmtrain.spec.config import ModelConfig
from llmtrain.spec.errors import ConfigError

PEER = "nanoGPT"
FILES = ("train.py", "model.py", "configurator.py")
STEPS = 60
SETTLE = 10
"""Steps that are not timed."""
TOKENS = 4_000_000
"""Of the text, as many as it gets: it draws its rows at random."""
ITERATION = re.compile(r"iter (\d+): .* time ([0-9.]+)ms")


def checkout(peer: str) -> Path:
    """Return where nanoGPT lies. Raises ConfigError where it does not."""
    source = Path(peer).resolve()
    if not peer or any(not (source / name).is_file() for name in FILES):
        raise ConfigError(f"peer={peer!r} has no {FILES[0]}: give a nanoGPT checkout")
    return source


def set_up(source: Path, root: Path, tokens: np.ndarray, vocab_size: int) -> None:
    """Make a copy of a checkout, with the text, at `root`."""
    data = root / "data" / "bench"
    data.mkdir(parents=True)
    for name in FILES:
        shutil.copy(source / name, root / name)
    for name in ("train.bin", "val.bin"):
        np.asarray(tokens[:TOKENS]).astype(np.uint16).tofile(data / name)
    # What it unpickles: {'vocab_size': N} in the oldest, textual protocol.
    (data / "meta.pkl").write_bytes(b"(dS'vocab_size'\nI%d\ns." % vocab_size)


def tokens_per_second(
    root: Path,
    model: ModelConfig,
    *,
    rows: int,
    row_len: int,
    lr: float,
    n_threads: int,
    device: str = "cpu",
    dtype: str = "float32",
) -> float:
    """Return its speed: the median step after it has settled, rows of row_len tokens in each.

    On a GPU it is compiled; on a CPU it is eager and float32, as its loop knows nothing else there.
    Raises ConfigError where it fails.
    """
    on_gpu = device == "cuda"
    arguments = {
        "dataset": "bench", "device": device, "compile": on_gpu,
        "dtype": dtype if on_gpu else "float32",
        "eval_interval": 10**6, "eval_iters": 1, "log_interval": 1, "dropout": 0.0,
        "always_save_checkpoint": False, "out_dir": str(root / "out"),
        "gradient_accumulation_steps": 1, "batch_size": rows, "block_size": row_len,
        "n_layer": model.n_layers, "n_head": model.n_heads, "n_embd": model.d_model,
        "bias": model.bias,
        "max_iters": STEPS, "lr_decay_iters": STEPS, "warmup_iters": 10, "learning_rate": lr,
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
    return rows * row_len / median(steps) * 1e3
