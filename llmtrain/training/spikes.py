"""Losses that leap out of the ones before them, by a rule with a known rate of false alarms."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEVEL = 8  # losses whose median is the level of the next one
DRIFT = 32  # earlier distances to that level: their median is what the trend adds to it
SCALE = 96  # differences of neighbours that give the noise
MEMORY = SCALE + 1
THRESHOLD = 5.5
"""Standard deviations of the noise: one false alarm in 100,000 steps of normal noise or fewer."""
BLOCK = 64  # losses judged at once, so that a step costs microseconds
TO_SD = 1.4826 / np.sqrt(2.0)  # of the median distance of differences, for normal noise


def leaps(losses: Array) -> Array:
    """Return how far each loss behind the first MEMORY stands above its own past, in noise sd.

    Shape (n - MEMORY,). Medians alone, so that a spike in the past hides no other one; the noise is
    taken from differences of neighbours, which no trend of many steps widens.
    """
    n = len(losses) - MEMORY
    distance = losses[LEVEL:] - np.median(sliding_window_view(losses, LEVEL)[:-1], axis=1)
    drift = np.median(sliding_window_view(distance, DRIFT)[:-1], axis=1)
    steps = sliding_window_view(np.diff(losses), SCALE)[:-1]
    middle = np.median(steps, axis=1, keepdims=True)
    noise = TO_SD * np.median(np.abs(steps - middle), axis=1)
    floor = 1e-6 * np.abs(losses[-n:])  # losses that repeat exactly have no noise
    found: Array = (distance[-n:] - drift[-n:]) / np.maximum(noise, floor)
    return found


class SpikeCounter:
    """Counts spikes among losses that come in pieces; how they are cut changes nothing."""

    def __init__(self) -> None:
        self.count = 0
        self.last: tuple[int, float, float] | None = None
        """Step, loss and standard deviations of the newest spike."""
        self.steps: list[int] = []
        self.losses: list[float] = []

    def read(self, first_step: int, losses: Sequence[float], edges: Sequence[int] = ()) -> None:
        """Take the losses of consecutive steps; those that are no numbers leave no trace.

        `edges`: first steps of another input shape; losses are not compared across them.
        """
        for step, loss in enumerate(losses, first_step):
            if step in edges:
                self.judge()
                self.steps, self.losses = [], []
            if math.isfinite(loss):
                self.steps.append(step)
                self.losses.append(loss)
            if len(self.losses) >= MEMORY + BLOCK:
                self.judge()

    def judge(self) -> None:
        """Judge what has come in since the last time, down to the memory of the next losses."""
        if len(self.losses) <= MEMORY:
            return
        sds = leaps(np.array(self.losses))
        found = np.flatnonzero(sds > THRESHOLD)
        self.count += len(found)
        if len(found):
            at = MEMORY + int(found[-1])
            self.last = (self.steps[at], self.losses[at], float(sds[found[-1]]))
        self.steps, self.losses = self.steps[-MEMORY:], self.losses[-MEMORY:]

    def state(self) -> dict[str, Any]:
        """Return everything that continuing needs."""
        return {"count": self.count, "steps": list(self.steps), "losses": list(self.losses)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.count = state["count"]
        self.steps, self.losses = list(state["steps"]), list(state["losses"])
