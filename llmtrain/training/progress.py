"""What a run tells of itself while it trains."""

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


ProgressHook = Callable[[Progress], None]
StepHook = Callable[[], None]
