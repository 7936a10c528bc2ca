"""A run as a command of its own, and whether it did what another one did."""

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benches import BenchError, finished
from llmtrain.spec.settings import TrainConfig

GPU_TOLERANCE = 1e-3  # attention's backward kernels add in no fixed order
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
    """Raise BenchError where two runs did not do the same work: equal bits, but on a GPU."""
    first, second = finished(one), finished(other)
    tolerance = GPU_TOLERANCE if first.hardware["device"] == "cuda" else 0.0
    if not math.isclose(first.val_loss, second.val_loss, rel_tol=tolerance):
        raise BenchError("the losses of the two sides differ; compare the records")
