"""What a run tells whoever watches it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, for whoever shows it."""

    step: int
    n_steps: int
    loss: float
    lr: float
    seq_len: int
    tokens_per_second: float
    mfu: float | None = None


ProgressHook = Callable[[Progress], None]
StepHook = Callable[[], None]


def progress_of(row: Mapping[str, float | int], n_steps: int) -> Progress:
    """Return what a row of training metrics says of a run of `n_steps`."""
    return Progress(
        step=int(row["step"]),
        n_steps=n_steps,
        loss=row.get("train/loss", math.nan),  # every update since the last row was held back
        lr=row["train/lr"],
        seq_len=int(row["train/seq_len"]),
        tokens_per_second=row["train/tokens_per_second"],
        mfu=row.get("train/mfu"),
    )
