"""Runs that no smooth curve explains: diverged, mistyped, or trained otherwise."""

import numpy as np
from numpy.typing import NDArray

from llmtrain.scaling.law import Array, LossLaw

LIMIT = 5.0
"""Residuals beyond this many scaled median deviations are named."""
MAD_TO_SD = 1.4826
MIN_ROWS = 5


def find_outliers(
    N: Array, D: Array, loss: Array, budget: Array, law: LossLaw | None
) -> NDArray[np.bool_]:
    """Return the rows whose loss leaves both its budget's robust parabola and the robust surface.

    Shapes (n,). The parabola alone would name the ends of a wide grid, where every true curve
    leaves it; the surface alone would name what the form misses. `law` None (refused) leaves the
    parabola.
    """
    off_curve = np.zeros(len(N), dtype=bool)
    residual = np.full(len(N), np.nan)
    n_curves = 0
    for value in np.unique(budget[np.isfinite(budget)]):
        rows = np.flatnonzero(budget == value)
        if len(rows) >= MIN_ROWS:
            residual[rows] = _robust_parabola_residual(N[rows], loss[rows])
            n_curves += 1
    known = np.isfinite(residual)
    off_curve[known] = _far(residual[known], n_fitted=3 * n_curves)
    if law is None:
        return off_curve
    off_surface = _far(np.log(loss) - np.log(law.loss(N, D)), n_fitted=5)
    return np.asarray(off_surface & (off_curve | ~known))


def _far(residual: Array, *, n_fitted: int) -> NDArray[np.bool_]:
    """Return which residuals of a robust fit with `n_fitted` constants are too far out.

    A robust fit runs through about as many points as it has constants; their residuals of zero
    say nothing about the noise and stay out of the median.
    """
    if residual.size <= n_fitted:
        return np.zeros(len(residual), dtype=bool)
    centred = np.abs(residual - np.median(residual))
    scale = MAD_TO_SD * float(np.median(np.sort(centred)[n_fitted:]))
    return np.asarray(centred > LIMIT * max(scale, 1e-6))


def _robust_parabola_residual(N: Array, loss: Array, steps: int = 50) -> Array:
    """Return residuals of ln L from a least-absolute-deviations parabola in ln N."""
    u = np.log(N) - np.log(N).mean()
    design, target = np.vander(u, 3), np.log(loss)
    weights = np.ones(len(u))
    residual = target
    for _ in range(steps):
        root = np.sqrt(weights)[:, None]
        solution = np.linalg.lstsq(design * root, target * root[:, 0], rcond=None)[0]
        residual = target - design @ solution
        weights = 1.0 / np.maximum(np.abs(residual), 1e-6)
    return np.asarray(residual)
