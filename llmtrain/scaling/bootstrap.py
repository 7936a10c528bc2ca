"""Intervals by resampling: every draw of every estimator at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llmtrain.scaling.cost import CostModel
from llmtrain.scaling.envelope import fit_envelope
from llmtrain.scaling.isoflop import IsoflopFit
from llmtrain.scaling.law import LARGEST_LOG, Array, LossLaw, PowerLaw
from llmtrain.scaling.newton import minimise
from llmtrain.scaling.parametric import (
    GRADIENT_LIMIT,
    ParametricFit,
    free_directions,
    make_objective,
)
from llmtrain.spec.errors import FitRefusedError

Unit = Literal["run", "model", "budget"]
COVERAGE = 0.9
SECOND_START = np.array([0.2, -0.2, -0.1, 0.15, -0.1])
"""Offset of the second start of every draw on the centred axes."""


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
        return np.array([float(cost.n_opt(law, C)) for law in self.laws()])


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

    The rows must be those of `fit`. Returns theta (b, 5) on the fit's centred axes, and which rows
    converged to a law with positive exponents.
    """
    objective = make_objective(N, D, loss, fit.options, fit.centre)
    basis = free_directions(fit.options)
    second = fit.theta + basis @ np.linalg.pinv(basis) @ SECOND_START
    thetas, values = [], []
    for start in (fit.theta, second):
        starts = np.repeat(start[None], len(weights), axis=0)
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
    """Return the laws of the draws; one that does not converge counts as failed."""
    theta, usable = refit_weights(fit, N, D, loss, weights)
    theta = theta[usable]
    return LawDraws(
        E=np.exp(theta[:, 2]),
        A=np.exp(theta[:, 0] + theta[:, 3] * fit.centre[0]),
        B=np.exp(theta[:, 1] + theta[:, 4] * fit.centre[1]),
        alpha=theta[:, 3],
        beta=theta[:, 4],
        failed=int((~usable).sum()),
    )


def bootstrap_isoflop(
    fit: IsoflopFit,
    N: Array,
    D: Array,
    loss: Array,
    budget: Array,
    *,
    unit: Unit,
    n_draws: int,
    seed: int,
) -> PowerDraws:
    """Redraw the minima of Approach 2 and refit its lines.

    A grid is a design, not a sample, so for `run` and `model` the sizes stay and the residuals of
    the parabolas, each divided by sqrt(1 - leverage), are drawn anew, pooled over the budgets: a
    budget of seven sizes would lose its arms if its rows were drawn. `budget` resamples the curves.
    """
    rng = np.random.default_rng(seed)
    curves = fit.used
    log_c = np.log([curve.budget for curve in curves])
    shape = (n_draws, len(curves))
    if unit == "budget":
        picked = rng.integers(0, len(curves), size=shape)
        x = np.log([[curve.params.x, curve.tokens.x] for curve in curves])
        return draw_lines(log_c[picked], x[picked, 0], x[picked, 1])
    minima = [
        _redrawn_minima(values, loss, budget, [curve.budget for curve in curves], rng, n_draws)
        for values in (N, D)
    ]
    return draw_lines(np.broadcast_to(log_c, shape), minima[0], minima[1])


def _redrawn_minima(
    x: Array,
    loss: Array,
    budget: Array,
    budgets: list[float],
    rng: np.random.Generator,
    n_draws: int,
) -> Array:
    """Return ln x of the parabolas' minima, shape (n_draws, budgets); NaN without curvature."""
    projections, fitted, pool = [], [], []
    for value in budgets:
        rows = budget == value
        u = np.log(x[rows])
        design = np.vander(u - u.mean(), 3)
        solve = np.linalg.pinv(design)
        leverage = np.clip(np.einsum("ij,ji->i", design, solve), 0.0, 0.99)
        coefficients = solve @ loss[rows]
        pool.append((loss[rows] - design @ coefficients) / np.sqrt(1.0 - leverage))
        projections.append((solve, u.mean()))
        fitted.append(coefficients)
    residuals = np.concatenate(pool)
    residuals -= residuals.mean()
    columns = []
    for (solve, centre), coefficients in zip(projections, fitted, strict=True):
        noise = rng.choice(residuals, size=(n_draws, solve.shape[1]))
        p, q, _ = (coefficients + noise @ solve.T).T
        with np.errstate(divide="ignore", invalid="ignore"):
            columns.append(np.where(p > 0, centre - q / (2.0 * p), np.nan))
    return np.stack(columns, axis=1)


def draw_lines(log_c: Array, log_n: Array, log_d: Array) -> PowerDraws:
    """Fit ln N and ln D on ln C per draw, shapes (b, k); NaN minima leave their draw's line.

    A draw with fewer than three minima fails (two, where the fit itself has no more).
    """
    known = np.isfinite(log_n) & np.isfinite(log_d)
    n_known = np.maximum(known.sum(axis=1), 1)
    centre = np.where(known, log_c, 0.0).sum(axis=1) / n_known
    u = np.where(known, log_c - centre[:, None], 0.0)
    spread = (u * u).sum(axis=1)
    slopes, heights = [], []
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for y in (np.where(known, log_n, 0.0), np.where(known, log_d, 0.0)):
            slopes.append((u * y).sum(axis=1) / spread)
            heights.append(np.exp(y.sum(axis=1) / n_known - slopes[-1] * centre))
    enough = known.sum(axis=1) >= min(3, log_c.shape[1])
    good = enough & (spread > 1e-9)
    for slope, height in zip(slopes, heights, strict=True):
        good &= np.isfinite(slope) & np.isfinite(height) & (height > 0)
    return PowerDraws(
        params_coefficient=heights[0][good],
        a=slopes[0][good],
        tokens_coefficient=heights[1][good],
        b=slopes[1][good],
        failed=int((~good).sum()),
    )


def bootstrap_envelope(N: Array, D: Array, C: Array, loss: Array, weights: Array) -> PowerDraws:
    """Refit the hull on each draw's distinct rows; draws with too few hull points fail."""
    laws = []
    for weight in weights:
        kept = weight > 0
        try:
            fit = fit_envelope(N[kept], D[kept], C[kept], loss[kept])
        except FitRefusedError:
            continue
        laws.append((fit.params_law, fit.tokens_law))
    return power_draws(laws, failed=len(weights) - len(laws))


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
