"""Minimise a sum of losses of z = logsumexp(a - alpha x, b - beta y, e) for many starts at once.

Five parameters theta = (a, b, e, alpha, beta) per problem, with x = ln N and y = ln D centred on
their means, which makes the problem's conditioning independent of the units. Every start (and every
bootstrap draw) is one row of a batch: a damped Newton step with the exact Hessian, its eigenvalues
made positive, is a 5 x 5 eigenproblem per row. Near the optimum the steps are plain Newton steps,
so gradients reach 1e-10 where quasi-Newton methods stop early on the kinks of the Huber loss.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llmtrain.scaling.law import Array

Link = Literal["log", "linear"]
ROWS_AT_ONCE = 60_000
"""Starts are worked through in chunks of about this many residuals, to stay in the cache."""
POLISHING_STEPS = 5
ROUNDING = 1e-13
"""Relative difference of two sums over runs that are equal but for rounding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """Sum over rows of weight * Huber(residual); the residual is in ln L (log) or in L (linear)."""

    x: Array
    """ln N, centred, shape (n,)."""
    y: Array
    """ln D, centred, shape (n,)."""
    loss: Array
    """Nats per token, shape (n,), or (s, n): losses of its own for every start."""
    link: Link
    delta: float
    """Huber's corner; infinity is least squares."""

    def of(self, rows: slice | NDArray[np.intp]) -> "Objective":
        """Return the objective of some of the starts."""
        return self if self.loss.ndim == 1 else replace(self, loss=self.loss[rows])

    def value(self, theta: Array, weights: Array) -> Array:
        """Return the objective, shape (s,), at theta (s, 5) and weights (s or 1, n)."""
        residual = self._residual(_log_terms(self, theta)[0])
        return np.asarray((weights * self._huber(residual)).sum(axis=1))

    def derivatives(self, theta: Array, weights: Array) -> tuple[Array, Array, Array]:
        """Return objective (s,), gradient (s, 5) and Hessian (s, 5, 5)."""
        z, shares = _log_terms(self, theta)
        residual = self._residual(z)
        slope = np.clip(residual, -self.delta, self.delta) * weights
        curve = (np.abs(residual) <= self.delta) * weights
        if self.link == "linear":
            model = np.exp(z)
            # r = exp(z) - L: r' = model z', r'' = model (z'' + z' z'^T)
            slope, curve = slope * model, curve * model * model + slope * model
        p1, p2, p3 = shares
        jacobian = np.empty((len(z), 5, z.shape[1]))
        jacobian[:, 0], jacobian[:, 1], jacobian[:, 2] = p1, p2, p3
        np.multiply(p1, -self.x, out=jacobian[:, 3])
        np.multiply(p2, -self.y, out=jacobian[:, 4])
        gradient = (jacobian @ slope[:, :, None])[:, :, 0]
        hessian = (jacobian * (curve - slope)[:, None, :]) @ jacobian.transpose(0, 2, 1)
        m1, m2 = slope * p1, slope * p2
        for i, j, moment in (
            (0, 0, m1.sum(1)),
            (1, 1, m2.sum(1)),
            (2, 2, (slope * p3).sum(1)),
            (0, 3, -(m1 @ self.x)),
            (1, 4, -(m2 @ self.y)),
            (3, 3, m1 @ (self.x * self.x)),
            (4, 4, m2 @ (self.y * self.y)),
        ):
            hessian[:, i, j] += moment
            if i != j:
                hessian[:, j, i] += moment
        return (weights * self._huber(residual)).sum(axis=1), gradient, hessian

    def jacobian(self, theta: Array) -> tuple[Array, Array]:
        """Return z (n,) and dz / dtheta (n, 5) at one theta (5,)."""
        z, (p1, p2, p3) = _log_terms(self, theta[None])
        columns = [p1, p2, p3, -p1 * self.x, -p2 * self.y]
        return z[0], np.concatenate(columns).T

    def _residual(self, z: Array) -> Array:
        if self.link == "log":
            return z - np.log(self.loss)
        return np.exp(z) - self.loss

    def _huber(self, residual: Array) -> Array:
        size = np.abs(residual)
        if np.isinf(self.delta):
            return 0.5 * size * size
        linear = self.delta * (size - 0.5 * self.delta)
        return np.where(size <= self.delta, 0.5 * size * size, linear)


def _log_terms(objective: Objective, theta: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    """Return z (s, n) and the shares of the three terms in exp(z), each (s, n)."""
    a, b, e, alpha, beta = (theta[:, k, None] for k in range(5))
    t1 = a - alpha * objective.x
    t2 = b - beta * objective.y
    top = np.maximum(np.maximum(t1, t2), e)
    e1, e2, e3 = np.exp(t1 - top), np.exp(t2 - top), np.exp(e - top)
    total = e1 + e2 + e3
    return top + np.log(total), (e1 / total, e2 / total, e3 / total)


@dataclass(frozen=True, kw_only=True, slots=True)
class Minima:
    """Where each start of a batch ended."""

    theta: Array
    """Shape (s, 5), on the centred axes."""
    value: Array
    gradient: Array
    """Largest absolute component, in the free directions."""


def minimise(
    objective: Objective,
    starts: Array,
    weights: Array,
    *,
    free: Array | None = None,
    max_steps: int = 200,
    tolerance: float = 1e-11,
) -> Minima:
    """Run every start (s, 5) to a stationary point; `weights` is (1, n) or (s, n).

    `free` (5, k) spans the directions that may move, or (s, 5, k) a basis per start: all five by
    default; tie or fix parameters by leaving directions out. A row stops when its gradient is below
    `tolerance` or no step helps.
    """
    basis = np.eye(5) if free is None else free
    basis = basis[None] if basis.ndim == 2 else basis
    chunk = max(1, ROWS_AT_ONCE // max(1, objective.x.size))
    parts = []
    for first in range(0, len(starts), chunk):
        rows = slice(first, first + chunk)
        own = weights if len(weights) == 1 else weights[rows]
        span = basis if len(basis) == 1 else basis[rows]
        part = objective.of(rows)
        parts.append(_minimise_chunk(part, starts[rows], own, span, max_steps, tolerance))
    return Minima(
        theta=np.concatenate([part.theta for part in parts]),
        value=np.concatenate([part.value for part in parts]),
        gradient=np.concatenate([part.gradient for part in parts]),
    )


def _minimise_chunk(
    objective: Objective,
    starts: Array,
    weights: Array,
    basis: Array,
    max_steps: int,
    tolerance: float,
) -> Minima:
    theta = starts.copy()

    def derivatives(at: Array, rows: NDArray[np.intp]) -> tuple[Array, Array, Array]:
        own = weights if len(weights) == 1 else weights[rows]
        span = basis if len(basis) == 1 else basis[rows]
        value, gradient, hessian = objective.of(rows).derivatives(at, own)
        along = (gradient[:, None, :] @ span)[:, 0]
        return value, along, span.transpose(0, 2, 1) @ hessian @ span

    active = np.arange(len(theta))
    value, gradient, hessian = derivatives(theta, active)
    damping = np.full(len(theta), 1e-3)
    for _ in range(max_steps):
        going = (np.abs(gradient[active]).max(axis=1) > tolerance) & (damping[active] < 1e12)
        active = active[going & np.isfinite(value[active])]
        if active.size == 0:
            break
        span = basis if len(basis) == 1 else basis[active]
        step = _step(gradient[active], hessian[active], damping[active])
        trial = theta[active] + (span @ step[:, :, None])[:, :, 0]
        with np.errstate(over="ignore", invalid="ignore"):
            new_value, new_gradient, new_hessian = derivatives(trial, active)
        better = new_value < value[active]
        rows = active[better]
        theta[rows] = trial[better]
        value[rows] = new_value[better]
        gradient[rows] = new_gradient[better]
        hessian[rows] = new_hessian[better]
        damping[rows] = np.maximum(damping[rows] * 0.1, 1e-14)
        damping[active[~better]] = np.maximum(damping[active[~better]] * 8.0, 1e-8)
    # A sum of squares S is known to about 1e-16 S, so along a direction of curvature h its value
    # cannot tell gradients below 1e-8 sqrt(S h) apart. The gradient itself still can: plain Newton
    # steps go on as long as they halve it and leave the value equal to rounding.
    active = np.flatnonzero((np.abs(gradient).max(axis=1) > tolerance) & np.isfinite(value))
    for _ in range(POLISHING_STEPS):
        if active.size == 0:
            break
        span = basis if len(basis) == 1 else basis[active]
        step = _step(gradient[active], hessian[active], np.zeros(active.size))
        trial = theta[active] + (span @ step[:, :, None])[:, :, 0]
        with np.errstate(over="ignore", invalid="ignore"):
            new_value, new_gradient, new_hessian = derivatives(trial, active)
        better = new_value <= value[active] * (1.0 + ROUNDING)
        better &= np.abs(new_gradient).max(axis=1) < 0.5 * np.abs(gradient[active]).max(axis=1)
        active = active[better]
        theta[active], value[active] = trial[better], new_value[better]
        gradient[active], hessian[active] = new_gradient[better], new_hessian[better]
    return Minima(theta=theta, value=value, gradient=np.abs(gradient).max(axis=1))


def _step(gradient: Array, hessian: Array, damping: Array) -> Array:
    """Return -(|H| + damping * scale)^-1 g per row, |H| by eigenvalues: always downhill."""
    curvature, axes = np.linalg.eigh(hessian)
    size = np.abs(curvature)
    scale = np.maximum(size.max(axis=1, keepdims=True), 1e-300)
    along = np.einsum("sij,si->sj", axes, gradient)
    along /= np.maximum(size, 1e-15 * scale) + damping[:, None] * scale
    step = -np.einsum("sij,sj->si", axes, along)
    longest = np.abs(step).max(axis=1, keepdims=True)
    # Far from the optimum the Hessian says little: no parameter moves by more than 2 in one step.
    return np.asarray(step * np.minimum(1.0, 2.0 / np.maximum(longest, 1e-300)))
