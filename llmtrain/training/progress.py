"""What a run tells whoever watches it."""

from collections.abc import Callable
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
