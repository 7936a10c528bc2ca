"""Approach 2 with an Akima read-out instead of parabolas.

Source: Porian et al. 2024 (arXiv 2406.19146), appendix on fitting. ln L is interpolated over ln N
by an Akima spline, the minimum is read off a fine grid, and a budget with its minimum at an end of
the grid is dropped. Nothing is assumed about the shape of the valley, but the grid must be fine.
"""

import numpy as np
from scipy.interpolate import Akima1DInterpolator

from llmtrain.scaling.isoflop import MIN_SIZES, Vertex, mean_by_size
from llmtrain.scaling.law import Array

POINTS_PER_INTERVAL = 25


def akima_vertex(x: Array, loss: Array) -> Vertex:
    """Return the minimum of the Akima spline of ln loss over ln x, shapes (n,).

    Runs that share x (seeds) enter by their mean of ln loss. A minimum at either end is an `edge`.
    """
    nan = float("nan")
    blank = (nan, nan, nan)
    log_x, log_loss = mean_by_size(x, loss)
    if len(log_x) < MIN_SIZES:
        return Vertex(status="thin", x=nan, loss=nan, coefficients=blank, centre=nan)
    fine = _fine_grid(log_x)
    values = Akima1DInterpolator(log_x, log_loss)(fine)
    best = int(values.argmin())
    return Vertex(
        status="edge" if best in (0, len(fine) - 1) else "used",
        x=float(np.exp(fine[best])),
        loss=float(np.exp(values[best])),
        coefficients=blank,
        centre=nan,
    )


def _fine_grid(log_x: Array) -> Array:
    """Return POINTS_PER_INTERVAL points in each interval, and the last knot."""
    steps = np.arange(POINTS_PER_INTERVAL) / POINTS_PER_INTERVAL
    inner = (log_x[:-1, None] + np.diff(log_x)[:, None] * steps).ravel()
    return np.append(inner, log_x[-1])


def akima_minima(log_x: Array, log_loss: Array) -> Array:
    """Return ln x of the minima of all columns of log_loss (n, b); NaN at an end."""
    fine = _fine_grid(log_x)
    best = Akima1DInterpolator(log_x, log_loss)(fine).argmin(axis=0)
    return np.where((best == 0) | (best == len(fine) - 1), np.nan, fine[best])
