"""Does the loss need a term in N and D together? A check on the form of the law.

L = E + A N^-alpha + B D^-beta + K N^-alpha D^-beta. Seen as a smooth function of u = N^-alpha and
v = D^-beta, the five-constant law is its expansion to first order; squares of u or v alone can hide
in the exponents, so the mixed term u v is the first that the law cannot imitate. It also is the
first order of a data exponent that moves with N, as Farseer (Li et al. 2025, arXiv 2506.10972) has.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import least_squares
from scipy.special import fdtrc

from llmtrain.scaling.bootstrap import Interval, PowerDraws, draw_lines, interval
from llmtrain.scaling.cost import CostModel
from llmtrain.scaling.law import Array, PowerLaw, fit_power_law
from llmtrain.scaling.parametric import AGREE, GRADIENT_LIMIT, ParametricFit
from llmtrain.spec.errors import FitRefusedError

CONSTANTS = 6
STARTS = 12
ROUNDING = 1e-10
"""Residuals of ln L below this are arithmetic, not evidence."""
CONDITION_LIMIT = 2000.0
FAR = 60.0
SIZES = 301
"""Values of ln N among which the optimum is sought, before a parabola through the best three."""
FLOP_VALUES = 9


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class InteractionFit:
    """The law with its mixed term by least squares of ln L, and what the term is worth."""

    name: str
    E: float
    A: float
    B: float
    K: float
    alpha: float
    beta: float
    share_interval: Interval | None
    """90 % interval of K over A B; holds 0 where the data do not ask for the term."""
    params_law: PowerLaw
    """N_opt(C) over the runs' own range of C: no exact power law, so its least-squares line."""
    tokens_law: PowerLaw
    objective: float
    """Half the sum of squares, to compare with `log_squares`."""
    gradient: float
    starts: int
    agreeing: int
    condition: float
    F: float
    """F statistic of the sixth constant, with 1 and n - 6 degrees of freedom."""
    p_value: float
    aic_gain: float
    """AIC of the five constants minus that of the six: above 2, the data ask for the term."""

    @property
    def a(self) -> float:
        """Exponent of N_opt over the runs' range of C."""
        return self.params_law.exponent

    @property
    def b(self) -> float:
        """Exponent of D_opt over the runs' range of C."""
        return self.tokens_law.exponent

    @property
    def asked_for(self) -> bool:
        """Whether F at 1 % and AIC by 2 agree that the term is needed."""
        return self.p_value < 0.01 and self.aic_gain > 2.0


def fit_interaction(
    base: ParametricFit,
    columns: tuple[Array, Array, Array, Array],
    cost: CostModel,
    *,
    n_draws: int,
    seed: int,
) -> tuple[InteractionFit, PowerDraws]:
    """Fit six constants to N, D, loss and C, shapes (n,), from starts around `base`.

    `base` is the least-squares fit of ln L without the term, on the same rows. The draws are from
    the Gaussian of the linearised fit. Raises FitRefusedError where the term is not identified.
    """
    N, D, loss, C = columns
    n = len(N)
    if n < CONSTANTS + 4:
        raise FitRefusedError(f"{n} runs leave too little to judge a sixth constant; add runs")
    x, y = np.log(N) - base.centre[0], np.log(D) - base.centre[1]
    best, agreeing = _solve(base, x, y, np.log(loss))
    jacobian = best.jac
    norms = np.linalg.norm(jacobian, axis=0)
    singular = np.linalg.svd(jacobian / np.maximum(norms, 1e-300), compute_uv=False)
    condition = float(singular[0] / max(singular[-1], 1e-300))
    gradient = float(np.abs(best.grad).max())
    theta = np.asarray(best.x)
    _check(theta, gradient, agreeing, condition, y)
    squares, old = 2.0 * float(best.cost), 2.0 * base.certificate.objective
    floor = n * ROUNDING**2
    squares, old = max(squares, floor), max(old, floor)
    variance = squares / (n - CONSTANTS)
    F = max(0.0, old - squares) / variance
    rng = np.random.default_rng(seed)
    covariance = variance * np.linalg.inv(jacobian.T @ jacobian)
    thetas = np.concatenate([theta[None], rng.multivariate_normal(theta, covariance, size=n_draws)])
    flops = np.geomspace(C.min(), C.max(), FLOP_VALUES)
    log_n = _optima(thetas, base.centre, cost, flops, (np.log(N).min(), np.log(N).max()))
    if not np.isfinite(log_n[0]).all():
        raise FitRefusedError(
            "with the term N^-alpha D^-beta the optimum leaves the range of sizes; widen the grid"
        )
    log_d = np.log(cost.tokens(flops, np.exp(log_n)))
    a, b, e, alpha, beta, kappa = (float(value) for value in theta)
    A, B = np.exp(a + alpha * base.centre[0]), np.exp(b + beta * base.centre[1])
    fit = InteractionFit(
        name="interaction",
        E=float(np.exp(e)),
        A=float(A),
        B=float(B),
        K=float(kappa * A * B),
        alpha=alpha,
        beta=beta,
        share_interval=interval(thetas[1:, 5]),
        params_law=fit_power_law(flops, np.exp(log_n[0])),
        tokens_law=fit_power_law(flops, np.exp(log_d[0])),
        objective=0.5 * squares,
        gradient=gradient,
        starts=STARTS,
        agreeing=agreeing,
        condition=condition,
        F=F,
        p_value=float(fdtrc(1, n - CONSTANTS, F)),
        aic_gain=float(n * np.log(max(old, squares) / squares) - 2.0),
    )
    log_c = np.broadcast_to(np.log(flops), log_n[1:].shape)
    return fit, draw_lines(log_c, log_n[1:], log_d[1:])


def _solve(base: ParametricFit, x: Array, y: Array, log_loss: Array) -> tuple[Any, int]:
    """Return scipy's best result and how many starts reached its objective."""

    def model(theta: Array) -> tuple[Array, Array, Array]:
        # A start may wander where the terms overflow; the clip sends it back by its residuals.
        u = np.exp(np.clip(theta[0] - theta[3] * x, -FAR, FAR))
        v = np.exp(np.clip(theta[1] - theta[4] * y, -FAR, FAR))
        total = np.exp(np.clip(theta[2], -FAR, FAR)) + u + v + theta[5] * u * v
        return u, v, np.maximum(total, 1e-9)

    def residuals(theta: Array) -> Array:
        return np.asarray(np.log(model(theta)[2]) - log_loss)

    def jacobian(theta: Array) -> Array:
        u, v, total = model(theta)
        du, dv = u * (1.0 + theta[5] * v), v * (1.0 + theta[5] * u)
        e = np.full_like(u, np.exp(np.clip(theta[2], -FAR, FAR)))
        return np.stack([du, dv, e, -du * x, -dv * y, u * v], axis=1) / total[:, None]

    found = []
    for kappa in (-0.2, 0.0, 0.5):
        for stretch in (0.7, 0.9, 1.1, 1.4):
            start = np.append(base.theta, kappa)
            start[3:5] *= stretch
            try:
                found.append(
                    least_squares(
                        residuals, start, jacobian, method="lm",
                        xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=400,
                    )
                )  # fmt: skip
            except (ValueError, np.linalg.LinAlgError):
                continue
    if not found:
        raise FitRefusedError("no start of the fit with an interaction stays finite; add runs")
    best = min(found, key=lambda result: float(result.cost))
    return best, sum(result.cost <= best.cost * (1.0 + AGREE) + 1e-18 for result in found)


def _check(theta: Array, gradient: float, agreeing: int, condition: float, y: Array) -> None:
    """Refuse a sixth constant that the runs do not identify."""
    if gradient > GRADIENT_LIMIT or agreeing < 2:
        raise FitRefusedError(
            f"not certified: gradient {gradient:.1e} (limit {GRADIENT_LIMIT:g}), {agreeing} of "
            f"{STARTS} starts agree (at least 2)"
        )
    if condition > CONDITION_LIMIT or np.exp(theta[2]) < 1e-6 or (theta[3:5] < 0.01).any():
        raise FitRefusedError(
            f"not identified: Jacobian condition {condition:.3g} (limit {CONDITION_LIMIT:g}), "
            f"E={np.exp(theta[2]):.3g}, alpha={theta[3]:.3g}, beta={theta[4]:.3g}; vary D/N more "
            "at each size, or add budgets"
        )
    if (1.0 + theta[5] * np.exp(theta[1] - theta[4] * y) <= 0).any():
        raise FitRefusedError(
            "with the term N^-alpha D^-beta the loss rises with N within the data: no law"
        )


def _optima(
    thetas: Array,
    centre: tuple[float, float],
    cost: CostModel,
    flops: Array,
    reach: tuple[float, float],
) -> Array:
    """Return ln N_opt, shape (b, c); NaN where the optimum lies far outside the sizes at hand."""
    grid = np.linspace(reach[0] - np.log(10.0), reach[1] + np.log(10.0), SIZES)
    a, b, e, alpha, beta, kappa = (thetas[:, k, None] for k in range(CONSTANTS))
    with np.errstate(over="ignore", invalid="ignore"):
        u = np.exp(a - alpha * (grid - centre[0]))
        columns = []
        for C in flops:
            v = np.exp(b - beta * (np.log(cost.tokens(C, np.exp(grid))) - centre[1]))
            loss = np.exp(e) + u + v + kappa * u * v
            k = loss.argmin(axis=1)
            inside = (k > 0) & (k < SIZES - 1)
            k = np.clip(k, 1, SIZES - 2)
            left, middle, right = (loss[np.arange(len(k)), k + i] for i in (-1, 0, 1))
            bend = left - 2.0 * middle + right
            shift = np.where(bend > 0, 0.5 * (left - right) / np.where(bend > 0, bend, 1.0), 0.0)
            columns.append(np.where(inside, grid[k] + shift * (grid[1] - grid[0]), np.nan))
    return np.stack(columns, axis=1)
