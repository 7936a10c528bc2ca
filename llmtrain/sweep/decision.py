"""What an adaptive sweep is told and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmtrain.scaling.law import Array
from llmtrain.scaling.precision import Cells


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A cell that the planner accepts."""

    shape: str
    budget: float
    params: float
    tokens: float
    flops: float
    """What it costs, under the budget's convention."""

    @property
    def key(self) -> tuple[str, float]:
        """What tells it from other cells."""
        return self.shape, self.budget


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A cell that was run with a seed."""

    cell: Candidate
    seed: int
    loss: float
    """Nats per token; NaN where the run failed: it enters no fit and is not tried again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pick:
    """A cell to run, and why."""

    cell: Candidate
    seed: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """One decision."""

    picks: tuple[Pick, ...]
    stop: str
    """Why the sweep is over; empty while it goes on."""
    a: float | None
    """Exponent of N_opt and its 90 % interval, where they are known yet."""
    interval: tuple[float, float] | None
    forecast_sd: float | None
    """Standard deviation of ln L at the forecast's budget, where it was asked for and is known."""
    spent: float
    """FLOPs of the runs so far."""


def columns(cells: Sequence[Candidate]) -> Cells:
    """Return the cells as columns."""

    def column(name: str) -> Array:
        return np.array([getattr(cell, name) for cell in cells], dtype=np.float64)

    return Cells(
        params=column("params"),
        tokens=column("tokens"),
        flops=column("flops"),
        budget=column("budget"),
    )
