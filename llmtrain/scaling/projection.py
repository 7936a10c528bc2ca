"""For given exponents the law is linear: non-negative E, A and B in closed form, on a grid."""

from dataclasses import dataclass

import numpy as np

from llmtrain.scaling.law import Array

SUBSETS = np.array([[e, a, b] for e in (0, 1) for a in (0, 1) for b in (0, 1)][1:], dtype=bool)
"""The non-empty sets of terms that may be present."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GridFit:
    """Best non-negative coefficients at every pair of exponents, flattened to (g,)."""

    alpha: Array
    beta: Array
    coefficients: Array
    """Shape (g, 3): E and the coefficients of the two centred power terms."""
    squares: Array
    """Weighted sum of squared residuals of L."""


def project(x: Array, y: Array, loss: Array, weights: Array, alpha: Array, beta: Array) -> GridFit:
    """Solve min sum w (L - E - A e^(-alpha x) - B e^(-beta y))^2, E, A, B >= 0, at each pair.

    x, y, loss, weights have shape (n,), alpha and beta (g,). With three terms the non-negative
    optimum is the best feasible one among the seven sets of terms, so all pairs go at once.
    Source: Czech et al. 2026 (arXiv 2603.22339), variable projection.
    """
    terms = np.stack(
        [np.ones((len(alpha), len(x))), np.exp(-np.outer(alpha, x)), np.exp(-np.outer(beta, y))],
        axis=1,
    )
    gram = (terms * weights) @ terms.transpose(0, 2, 1)
    moment = terms @ (weights * loss)
    power = float(weights @ (loss * loss))
    best = np.full(len(alpha), power)
    chosen = np.zeros((len(alpha), 3))
    for subset in SUBSETS:
        keep = np.outer(subset, subset)
        # A tiny ridge keeps nearly equal terms (alpha and beta near 0) solvable.
        ridge = 1e-13 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(3)
        system = np.where(keep, gram, np.eye(3)) + ridge
        c = np.linalg.solve(system, np.where(subset, moment, 0.0)[..., None])[..., 0]
        squares = power - 2.0 * (c * moment).sum(axis=1) + np.einsum("gi,gij,gj->g", c, gram, c)
        better = (c >= 0).all(axis=1) & (squares < best)
        best = np.where(better, squares, best)
        chosen[better] = c[better]
    return GridFit(alpha=alpha, beta=beta, coefficients=chosen, squares=best)


def exponent_grid(low: float, high: float, points: int) -> tuple[Array, Array]:
    """Return all pairs of log-spaced exponents, each shape (points^2,)."""
    axis = np.geomspace(low, high, points)
    first, second = np.meshgrid(axis, axis, indexing="ij")
    return first.ravel(), second.ravel()
