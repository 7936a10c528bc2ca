"""A run as a command of its own, and whether it did what another one did."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benches import BenchError, finished
from llmtrain.spec.settings import TrainConfig

TRAIN = Path(__file__).resolve().parents[1] / "train.py"


def train_alone(overrides: Sequence[str]) -> None:
    """Train one run with scripts/train.py, on one thread as a worker does. Raises BenchError."""
    done = subprocess.run(
        [sys.executable, str(TRAIN), *overrides],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise BenchError(f"a run failed: {done.stderr.strip()}")


def compare(one: TrainConfig, other: TrainConfig) -> None:
    """Raise BenchError where two runs did not do the same work."""
    losses = {finished(config).val_loss for config in (one, other)}
    if len(losses) != 1:
        raise BenchError("the losses of the two sides differ; compare the records")
