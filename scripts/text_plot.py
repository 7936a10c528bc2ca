"""IsoFLOP curves as text: loss against parameters, a small panel for each budget."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmtrain.scaling.wording import count, flops

POINT, LOWEST, UPRIGHT, CORNER, LEVEL = "•◆│└─"
NARROWEST, WIDEST, GAP = 24, 36, 2
ROWS = 5
"""Rows of a panel between its title and its axis."""
HEIGHT = ROWS + 3
LABEL = 6
"""Columns of a loss beside the axis."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetCurve:
    """One budget's cells so far."""

    budget: float
    n_done: int
    n_cells: int
    points: tuple[tuple[float, float], ...]
    """Parameters and loss of each size with a finished cell, mean over its seeds."""

    @property
    def lowest(self) -> tuple[float, float] | None:
        """The size of the lowest loss so far, and that loss."""
        return min(self.points, key=lambda point: point[1], default=None)


def panels(curves: Sequence[BudgetCurve], span: tuple[float, float], width: int) -> list[str]:
    """Return lines of at most `width` columns that show the curves side by side, in rows.

    `span`: the smallest and the largest model of them all, so that the panels share their x axis.
    """
    if not curves:
        return []
    across = max(1, min(len(curves), (width + GAP) // (NARROWEST + GAP)))
    own = min(WIDEST, (width + GAP) // across - GAP)
    lines: list[str] = []
    for first in range(0, len(curves), across):
        beside = [panel(curve, span, own) for curve in curves[first : first + across]]
        rows = zip(*beside, strict=True)
        lines += [(" " * GAP).join(line.ljust(own) for line in row).rstrip() for row in rows]
    return lines


def panel(curve: BudgetCurve, span: tuple[float, float], width: int) -> list[str]:
    """Return HEIGHT lines of at most `width` columns: the title, the points, the axis, its ends."""
    inner = width - LABEL - 2
    losses = [loss for _, loss in curve.points]
    grid = [[" "] * inner for _ in range(ROWS)]
    for params, loss in curve.points:
        grid[row_of(loss, losses)][column_of(params, span, inner)] = POINT
    if curve.lowest is not None:
        params, loss = curve.lowest
        grid[row_of(loss, losses)][column_of(params, span, inner)] = LOWEST
    labels = [""] * ROWS
    if losses:
        labels[row_of(max(losses), losses)] = f"{max(losses):.3f}"
        labels[row_of(min(losses), losses)] = f"{min(losses):.3f}"
    title = f"{flops(curve.budget)}  {curve.n_done}/{curve.n_cells}"
    if curve.lowest is not None:
        title += f"  {LOWEST} N {count(curve.lowest[0])}"
    ends = count(span[0]), count(span[1])
    room = max(1, inner + 1 - len(ends[0]) - len(ends[1]))
    return [
        title[:width],
        *(
            f"{label:>{LABEL}} {UPRIGHT}{''.join(row)}".rstrip()
            for label, row in zip(labels, grid, strict=True)
        ),
        f"{'':>{LABEL}} {CORNER}{LEVEL * inner}",
        f"{'':>{LABEL}} {ends[0]}{' ' * room}{ends[1]}"[:width],
    ]


def row_of(loss: float, losses: Sequence[float]) -> int:
    """Return the row of a loss, 0 on top; a curve without height lies in the middle."""
    low, high = min(losses), max(losses)
    share = 0.5 if high == low else (high - loss) / (high - low)
    return round(share * (ROWS - 1))


def column_of(params: float, span: tuple[float, float], inner: int) -> int:
    """Return the column of a size on the logarithmic axis."""
    low, high = map(math.log, span)
    share = 0.5 if high == low else (math.log(params) - low) / (high - low)
    return min(inner - 1, max(0, round(share * (inner - 1))))
