"""Approach 1: the lower envelope of loss against compute.

Source: the convex hull of McLeish et al. 2025 (Gemstones, arXiv 2502.06857) in place of the
smoothed curves of Hoffmann et al. 2022, section 3.1.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmtrain.scaling.law import Array, PowerLaw, fit_power_law
from llmtrain.spec.errors import FitRefusedError

MIN_POINTS = 3
NEARBY = 2.0
"""Rows within this factor of a hull point's FLOPs competed with it."""
MIN_CHOICE = 2.0
"""Least spread of D/N among the rows that competed, median over the hull's points."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EnvelopeFit:
    """Power laws through the runs on the lower hull of (ln C, ln L)."""

    name: str
    rows: NDArray[np.intp]
    """Rows of the input on the hull, by rising C."""
    flops: Array
    """C of those rows."""
    loss: Array
    """Their loss, nats per token."""
    params_law: PowerLaw
    tokens_law: PowerLaw

    @property
    def a(self) -> float:
        """Exponent of N."""
        return self.params_law.exponent

    @property
    def b(self) -> float:
        """Exponent of D; a + b need not be 1 where C is not 6 N D."""
        return self.tokens_law.exponent


def fit_envelope(
    N: Array, D: Array, C: Array, loss: Array, *, name: str = "approach1_hull"
) -> EnvelopeFit:
    """Fit ln N and ln D against ln C by least squares over the lower hull's points.

    Shapes (n,); checkpoints of one run may all enter. Raises FitRefusedError for fewer than three
    hull points.
    """
    rows = lower_hull(np.log(C), np.log(loss))
    if len(rows) < MIN_POINTS or np.ptp(C[rows]) == 0:
        raise FitRefusedError(
            f"Approach 1 finds {len(rows)} runs on the envelope and needs {MIN_POINTS}; add budgets"
        )
    return EnvelopeFit(
        name=name,
        rows=rows,
        flops=C[rows],
        loss=loss[rows],
        params_law=fit_power_law(C[rows], N[rows]),
        tokens_law=fit_power_law(C[rows], D[rows]),
    )


def refuse_no_choice(rows: NDArray[np.intp], N: Array, D: Array, C: Array) -> str:
    """Return why a hull follows the grid and not the runs; empty where sizes competed.

    On a ladder of one D/N every run lies on the hull, and its exponent is the grid's.
    """
    spread = []
    for row in rows:
        near = np.abs(np.log(C / C[row])) <= np.log(NEARBY)
        ratio = D[near] / N[near]
        spread.append(ratio.max() / ratio.min())
    if np.median(spread) >= MIN_CHOICE:
        return ""
    return (
        f"not identified: at equal FLOPs the runs differ in D/N by a factor of "
        f"{np.median(spread):.2g} only, so that the hull follows the grid; vary D/N at each budget"
    )


def lower_hull(log_c: Array, log_loss: Array) -> NDArray[np.intp]:
    """Return the rows on the lower convex hull, by rising C and falling loss.

    The paper closes its hull with one vantage point at twice the largest C and L and drops it
    again, which leaves the lower hull and what the upper left adds above it; the rule of falling
    loss removes the latter, so the monotone chain below gives the same rows.
    """
    order = np.lexsort((log_loss, log_c))
    # A run that a cheaper run beats is never on the falling part of the hull: out at once.
    lowest = np.minimum.accumulate(log_loss[order])
    order = order[np.append(True, log_loss[order][1:] < lowest[:-1])]
    hull: list[int] = []
    for row in order:
        if hull and log_c[row] == log_c[hull[-1]]:
            continue
        while len(hull) >= 2 and _turns_right(log_c, log_loss, hull[-2], hull[-1], row):
            hull.pop()
        hull.append(int(row))
    return np.array(hull, dtype=np.intp)


def _turns_right(x: Array, y: Array, first: int, middle: int, last: int) -> bool:
    cross = (x[middle] - x[first]) * (y[last] - y[first]) - (y[middle] - y[first]) * (
        x[last] - x[first]
    )
    return bool(cross <= 0)
