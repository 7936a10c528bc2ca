"""How cost grows: measured points and the line or power through them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmtrain.scaling.plot.style import BLUE, GREY, log_axis, new_figure, save, styled


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """Measurements of one cost against what it grows with."""

    x_name: str
    y_name: str
    x: np.ndarray
    y: np.ndarray
    tail: int | None
    """A power through this many of the largest x, on logarithmic axes; None: a line through all."""

    def fit(self) -> tuple[float, float]:
        """Return (slope, y at x = 0) of the line, or (power, y at x = 1)."""
        if self.tail is None:
            slope, start = np.polyfit(self.x, self.y, 1, w=1.0 / self.y)
            return float(slope), float(start)
        power, start = np.polyfit(np.log(self.x[-self.tail :]), np.log(self.y[-self.tail :]), 1)
        return float(power), float(np.exp(start))


def draw_costs(panels: Sequence[Panel], path: Path) -> None:
    """Draw the panels in a row and write `path` with the endings .svg and .png."""
    with styled():
        figure, axes = new_figure(len(panels), 2.7, width=2.8 * len(panels))
        for axis, panel in zip(axes, panels, strict=True):
            slope, start = panel.fit()
            first = 0 if panel.tail is None else len(panel.x) - panel.tail
            x = np.geomspace(panel.x[first], panel.x[-1], 50)
            line = start + slope * x if panel.tail is None else start * x**slope
            axis.plot(x, line, color=GREY, lw=1.0)
            axis.plot(panel.x, panel.y, "o", ms=4.5, color=BLUE, mec="white", mew=0.5)
            if panel.tail is None:
                axis.set_xlabel(panel.x_name)
                axis.set_ylabel(panel.y_name)
                axis.set_ylim(bottom=0)
                axis.set_title(f"{start:.2g} + {slope:.2g} x")
            else:
                log_axis(axis.xaxis, panel.x_name, counts=True)
                log_axis(axis.yaxis, panel.y_name, counts=False)
                axis.set_title(f"power {slope:.2f}")
        save(figure, path)
