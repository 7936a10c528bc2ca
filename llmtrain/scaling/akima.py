"""Approach 2 with an Akima read-out instead of parabolas.

Source: Porian et al. 2024 (arXiv 2406.19146), appendix on fitting. ln L is interpolated over ln N
by an Akima spline, the minimum is read off a fine grid, and a budget with its minimum at an end of
the grid is dropped. Nothing is assumed about the shape of the valley, but the grid must be fine.
"""

import numpy as np
from scipy.interpolate import Akima1DInterpolator

from llmtrain.scaling.bootstrap import PowerDraws, draw_lines
from llmtrain.scaling.isoflop import MIN_SIZES, IsoflopFit, Vertex
from llmtrain.scaling.law import Array

POINTS_PER_INTERVAL = 25


def akima_vertex(x: Array, loss: Array) -> Vertex:
    """Return the minimum of the Akima spline of ln loss over ln x, shapes (n,).

    Runs that share x (seeds) enter by their mean of ln loss. A minimum at either end is an `edge`.
    """
    nan = float("nan")
    blank = (nan, nan, nan)
    log_x, log_loss = _means(x, loss)
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


def local_noise(log_x: Array, log_loss: Array) -> Array:
    """Return each inner point's value over what its neighbours lead to expect, unit variance kept.

    Shapes (n,), log_x ascending. A parabola through the two neighbours on one side and the one on
    the other predicts the point; the difference, over the root of 1 + the sum of the squared
    weights, has the variance of one point.
    """
    found = []
    for i in range(1, len(log_x) - 1):
        near = [i - 1, i + 1, i + 2 if i + 2 < len(log_x) else i - 2]
        if near[2] < 0:
            continue
        knots = log_x[near]
        weights = np.array(
            [np.prod([(log_x[i] - v) / (w - v) for v in knots if v != w]) for w in knots]
        )
        found.append((log_loss[i] - weights @ log_loss[near]) / np.sqrt(1.0 + weights @ weights))
    return np.array(found, dtype=np.float64)


def bootstrap_akima(
    fit: IsoflopFit, N: Array, D: Array, loss: Array, budget: Array, *, n_draws: int, seed: int
) -> PowerDraws:
    """Redraw Approach 2's Akima minima under noise of the size that neighbours show.

    Normal noise on ln L of every size, one standard deviation for all budgets; minima that move to
    an end of the grid leave their budget out of that draw.
    """
    rng = np.random.default_rng(seed)
    curves = fit.used
    means = [
        [_means(x[budget == curve.budget], loss[budget == curve.budget]) for x in (N, D)]
        for curve in curves
    ]
    noise = np.concatenate([local_noise(*by_params) for by_params, _ in means])
    sd = float(np.sqrt(np.mean(noise**2))) if len(noise) else 0.0
    minima = np.full((2, n_draws, len(curves)), np.nan)
    for k, pair in enumerate(means):
        for axis, (log_x, log_loss) in enumerate(pair):
            shaken = log_loss[:, None] + sd * rng.standard_normal((len(log_x), n_draws))
            minima[axis, :, k] = _minima(log_x, shaken)
    log_c = np.broadcast_to(np.log([curve.budget for curve in curves]), minima.shape[1:])
    return draw_lines(log_c, minima[0], minima[1])


def _means(x: Array, loss: Array) -> tuple[Array, Array]:
    """Return ln x ascending without repeats, and the mean of ln loss at each."""
    log_x, own = np.unique(np.log(x), return_inverse=True)
    return log_x, np.bincount(own, weights=np.log(loss)) / np.bincount(own)


def _minima(log_x: Array, log_loss: Array) -> Array:
    """Return ln x of the minima of all columns of log_loss (n, b); NaN at an end."""
    fine = _fine_grid(log_x)
    best = Akima1DInterpolator(log_x, log_loss)(fine).argmin(axis=0)
    return np.where((best == 0) | (best == len(fine) - 1), np.nan, fine[best])
