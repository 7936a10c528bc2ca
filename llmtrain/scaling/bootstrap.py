"""Intervals by resampling: every draw of every estimator at once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtrc

from llmtrain.scaling.cost import CostModel
from llmtrain.scaling.envelope import MIN_POINTS, lower_hull
from llmtrain.scaling.law import LARGEST_LOG, Array, LossLaw, PowerLaw
from llmtrain.scaling.newton import minimise
from llmtrain.scaling.parametric import (
    GRADIENT_LIMIT,
    ParametricFit,
    free_directions,
    link_jacobian,
    make_objective,
)

Unit = Literal["auto", "residual", "run", "model", "budget"]
COVERAGE = 0.9
SECOND_START = np.array([0.2, -0.2, -0.1, 0.15, -0.1])
"""Offset of the second start of every draw on the centred axes."""
MAX_LEVERAGE = 0.95
"""A residual of a run that the fit passes through is scaled up by at most twenty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A central interval."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LawDraws:
    """Loss laws of the draws that converged, as columns of shape (b,)."""

    E: Array
    A: Array
    B: Array
    alpha: Array
    beta: Array
    failed: int
    """Draws without a converged law."""
    renewed: Literal["rows", "residuals"] = "rows"
    """What each draw drew anew."""

    @property
    def a(self) -> Array:
        """Exponents of N_opt at C = 6 N D."""
        return self.beta / (self.alpha + self.beta)

    def laws(self) -> list[LossLaw]:
        """Return the draws one by one."""
        columns = zip(self.E, self.A, self.B, self.alpha, self.beta, strict=True)
        return [
            LossLaw(E=float(e), A=float(A), B=float(B), alpha=float(alpha), beta=float(beta))
            for e, A, B, alpha, beta in columns
        ]

    def loss(self, N: Array | float, D: Array | float) -> Array:
        """Return the loss at one point per draw, or at one point for all."""
        return np.asarray(
            self.E + power_of(self.A, -self.alpha, N) + power_of(self.B, -self.beta, D)
        )

    def n_opt(self, C: float, cost: CostModel) -> Array:
        """Return every draw's optimal parameters at C FLOPs."""
        return cost.n_opt(self, C)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PowerDraws:
    """Power laws N_opt(C) and D_opt(C) of the draws, as columns of shape (b,)."""

    params_coefficient: Array
    a: Array
    tokens_coefficient: Array
    b: Array
    failed: int

    def n_opt(self, C: float) -> Array:
        """Return every draw's N_opt."""
        return power_of(self.params_coefficient, self.a, C)

    def d_opt(self, C: float) -> Array:
        """Return every draw's D_opt."""
        return power_of(self.tokens_coefficient, self.b, C)


def power_of(coefficient: Array, exponent: Array, x: Array | float) -> Array:
    """Return coefficient * x^exponent by its logarithm, held within what a float can say.

    A draw with a wild exponent is a bound of its interval at most: finite, and without a warning.
    """
    log_y = np.log(coefficient) + exponent * np.log(x)
    return np.asarray(np.exp(np.clip(log_y, -LARGEST_LOG, LARGEST_LOG)))


def interval(values: Array, coverage: float = COVERAGE) -> Interval | None:
    """Return the central interval of the finite values; None for fewer than 20."""
    finite = values[np.isfinite(values)]
    if len(finite) < 20:
        return None
    low, high = np.quantile(finite, [(1 - coverage) / 2, (1 + coverage) / 2])
    return Interval(low=float(low), high=float(high))


def draw_weights(units: NDArray[np.generic], n_draws: int, seed: int) -> Array:
    """Return how often each row occurs in each draw, shape (n_draws, n), resampling whole units."""
    _, own = np.unique(units, return_inverse=True)
    n_units = int(own.max()) + 1
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n_units, np.full(n_units, 1.0 / n_units), size=n_draws)
    return counts[:, own].astype(np.float64)


def refit_weights(
    fit: ParametricFit, N: Array, D: Array, loss: Array, weights: Array
) -> tuple[Array, NDArray[np.bool_]]:
    """Refit the surface under each row of weights (b, n), from two starts each.

    The rows must be those of `fit`; `loss` is (n,), or (b, n) for a draw's own losses. Returns
    theta (b, 5) on the fit's centred axes, and which converged to a law of positive exponents.
    """
    objective = make_objective(N, D, loss, fit.options, fit.centre)
    basis = free_directions(fit.options)
    second = fit.theta + basis @ np.linalg.pinv(basis) @ SECOND_START
    thetas, values = [], []
    for start in (fit.theta, second):
        starts = np.repeat(start[None], max(len(weights), len(np.atleast_2d(loss))), axis=0)
        minima = minimise(objective, starts, weights, free=basis, max_steps=80, tolerance=1e-9)
        converged = (minima.gradient <= GRADIENT_LIMIT) & (minima.theta[:, 3:] > 0).all(axis=1)
        thetas.append(minima.theta)
        values.append(np.where(converged, minima.value, np.inf))
    theta = np.where((values[0] <= values[1])[:, None], thetas[0], thetas[1])
    logs = np.abs(theta[:, :2] + theta[:, 3:] * np.asarray(fit.centre))
    return theta, np.isfinite(np.minimum(values[0], values[1])) & (logs < 600).all(axis=1)


def bootstrap_parametric(
    fit: ParametricFit, N: Array, D: Array, loss: Array, weights: Array
) -> LawDraws:
    """Return the laws of resampled rows; one that does not converge counts as failed."""
    return _law_draws(fit, *refit_weights(fit, N, D, loss, weights))


def bootstrap_residuals(
    fit: ParametricFit, N: Array, D: Array, loss: Array, *, n_draws: int, seed: int
) -> LawDraws:
    """Return the laws of redrawn residuals: the grid of N and D stays, the noise is drawn anew.

    Holds where the noise is the same all over the grid, see `noise_varies`.
    """
    z, deleted = deleted_residuals(fit, N, D, loss)
    deleted -= np.mean(deleted) if np.isinf(fit.options.delta) else np.median(deleted)
    redrawn = z + np.random.default_rng(seed).choice(deleted, size=(n_draws, len(z)))
    redrawn = np.exp(redrawn) if fit.options.link == "log" else np.maximum(redrawn, 1e-12)
    found = refit_weights(fit, N, D, redrawn, np.ones((1, len(z))))
    return replace(_law_draws(fit, *found), renewed="residuals")


def deleted_residuals(fit: ParametricFit, N: Array, D: Array, loss: Array) -> tuple[Array, Array]:
    """Return the fit at each row, and each residual over 1 - leverage, as ln L or L by the link.

    That is nearly what a run misses a fit without it by: five constants pull the surface towards
    every run of a small family, and Huber's loss through some of them.
    """
    z, jacobian = link_jacobian(fit, N, D)
    axes, _ = np.linalg.qr(jacobian)
    leverage = np.clip((axes * axes).sum(axis=1), 0.0, MAX_LEVERAGE)
    observed = np.log(loss) if fit.options.link == "log" else loss
    return z, (observed - z) / (1.0 - leverage)


def noise_varies(fit: ParametricFit, N: Array, D: Array, loss: Array, level: float = 0.05) -> bool:
    """Return whether the noise, or what the law misses, differs over the grid.

    Ranks of the absolute residuals on a full quadratic in ln N and ln D, by its F test: White's
    test (1980), on ranks so that single wild runs do not decide it.
    """
    size = np.abs(deleted_residuals(fit, N, D, loss)[1])
    ranks = np.argsort(np.argsort(size)).astype(np.float64)
    x, y = ((np.log(v) - np.log(v).mean()) / np.log(v).std() for v in (N, D))
    terms = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)
    left = len(x) - terms.shape[1]
    if left < 1:
        return True
    rest = ranks - terms @ np.linalg.lstsq(terms, ranks, rcond=None)[0]
    explained = float(((ranks - ranks.mean()) ** 2).sum() - rest @ rest)
    return bool(fdtrc(5, left, explained / 5 / (rest @ rest / left)) < level)


def redraw_surface(
    fit: ParametricFit,
    N: Array,
    D: Array,
    loss: Array,
    units: NDArray[np.generic],
    *,
    unit: Unit,
    n_draws: int,
    seed: int,
) -> LawDraws:
    """Redraw residuals or whole `units` (n,): with unit=auto, as `noise_varies` says.

    Rows that share a unit share their noise, as the branches of a trunk do: those are units always.
    """
    apart = len(np.unique(units)) == len(units)
    even = unit == "auto" and apart and not noise_varies(fit, N, D, loss)
    if even or unit == "residual":
        return bootstrap_residuals(fit, N, D, loss, n_draws=n_draws, seed=seed)
    return bootstrap_parametric(fit, N, D, loss, draw_weights(units, n_draws, seed))


def _law_draws(fit: ParametricFit, theta: Array, usable: NDArray[np.bool_]) -> LawDraws:
    theta = theta[usable]
    return LawDraws(
        E=np.exp(theta[:, 2]),
        A=np.exp(theta[:, 0] + theta[:, 3] * fit.centre[0]),
        B=np.exp(theta[:, 1] + theta[:, 4] * fit.centre[1]),
        alpha=theta[:, 3],
        beta=theta[:, 4],
        failed=int((~usable).sum()),
    )


def draw_lines(
    log_c: Array, log_n: Array, log_d: Array, weights: tuple[Array, Array] | None = None
) -> PowerDraws:
    """Fit ln N and ln D on ln C per draw, shapes (b, k); NaN minima leave their draw's line.

    `weights` are those of the k minima in N and in D, all equal by default. A draw with fewer than
    three minima fails (two, where the fit itself has no more).
    """
    known = np.isfinite(log_n) & np.isfinite(log_d)
    good = known.sum(axis=1) >= min(3, log_c.shape[1])
    columns = []
    even = np.ones(log_c.shape[1])
    for log_y, given in zip((log_n, log_d), weights or (even, even), strict=True):
        w, y = np.where(known, given, 0.0), np.where(known, log_y, 0.0)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            total = w.sum(axis=1)
            centre = (w * log_c).sum(axis=1) / total
            u = np.where(known, log_c - centre[:, None], 0.0)
            spread = (w * u * u).sum(axis=1)
            slope = (w * u * y).sum(axis=1) / spread
            height = np.exp((w * y).sum(axis=1) / total - slope * centre)
        good &= (spread > 1e-9 * given.max()) & np.isfinite(slope)
        good &= np.isfinite(height) & (height > 0)
        columns.append((height, slope))
    (n_height, a), (d_height, b) = columns
    return PowerDraws(
        params_coefficient=n_height[good],
        a=a[good],
        tokens_coefficient=d_height[good],
        b=b[good],
        failed=int((~good).sum()),
    )


def bootstrap_envelope(N: Array, D: Array, C: Array, loss: Array, weights: Array) -> PowerDraws:
    """Refit the hull on each draw's distinct rows; draws with too few hull points fail."""
    logs = np.log([C, N, D, loss])
    points = np.full((3, len(weights), len(C)), np.nan)
    for draw, weight in enumerate(weights):
        drawn = logs[:, weight > 0]
        rows = lower_hull(drawn[0], drawn[3])
        points[:, draw, : len(rows)] = drawn[:3, rows]
    log_c, log_n, log_d = points[:, :, : max(MIN_POINTS, np.isfinite(points[0]).sum(axis=1).max())]
    return draw_lines(np.nan_to_num(log_c), log_n, log_d)


def power_draws(laws: Sequence[tuple[PowerLaw, PowerLaw]], *, failed: int) -> PowerDraws:
    """Return draws from pairs of N_opt(C) and D_opt(C)."""
    rows = [[value for law in pair for value in (law.coefficient, law.exponent)] for pair in laws]
    columns = np.array(rows, dtype=np.float64).reshape(-1, 4)
    return PowerDraws(
        params_coefficient=columns[:, 0],
        a=columns[:, 1],
        tokens_coefficient=columns[:, 2],
        b=columns[:, 3],
        failed=failed,
    )
