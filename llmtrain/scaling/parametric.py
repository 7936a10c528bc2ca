"""Approach 3 and its relatives: the loss surface L(N, D) fitted to final losses.

Source: Hoffmann et al. 2022 (arXiv 2203.15556) section 3.3 and appendix D.3; Besiroglu et al. 2024
(arXiv 2404.10102) for the sum instead of the mean; Czech et al. 2026 (2603.22339) for projection.
"""

from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

from llmtrain.scaling.law import Array, LossLaw
from llmtrain.scaling.newton import Link, Minima, Objective, minimise
from llmtrain.scaling.projection import exponent_grid, project
from llmtrain.spec.errors import FitRefusedError

GRADIENT_LIMIT = 1e-8
AGREE = 1e-6
"""Starts whose objective is this close (relative) to the best agree with it."""
EXPONENT_BOUNDS = (0.01, 3.0)
Starts = Literal["centred", "hoffmann"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FitOptions:
    """Which surface, which loss."""

    link: Link = "log"
    """Residuals of ln L, or of L."""
    delta: float = 1e-3
    """Corner of the Huber loss; infinity is least squares."""
    starts: Starts = "centred"
    """A grid on the data's own scale, or the paper's 4500 points."""
    tie_exponents: bool = False
    """alpha = beta."""
    fixed_floor: float | None = None
    """Irreducible loss given instead of fitted."""

    @property
    def constrained(self) -> bool:
        """Whether fewer than five constants are free."""
        return self.tie_exponents or self.fixed_floor is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Certificate:
    """Why the optimum can be believed."""

    objective: float
    """Sum over runs of Huber losses."""
    gradient: float
    """Largest absolute component."""
    starts: int
    agreeing: int
    """Starts that ended within 1e-6 (relative) of the best objective."""
    next_optimum: float | None
    """Objective of the next distinct stationary point, or null where all starts agree."""
    at_bounds: tuple[str, ...]
    """Parameters at a limit: E at 0, an exponent outside [0.01, 3], A or B above 1e12."""
    condition: float
    """Condition of d ln L / d(free constants), columns normalised."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ParametricFit:
    """A fitted loss surface."""

    name: str
    law: LossLaw
    options: FitOptions
    certificate: Certificate
    theta: Array
    """The optimum on the centred axes, shape (5,)."""
    centre: tuple[float, float]
    """Means of ln N and ln D that theta is centred on."""
    n_runs: int

    def residuals(self, N: Array, D: Array, loss: Array) -> Array:
        """Return ln L observed minus ln L fitted."""
        return np.asarray(np.log(loss) - np.log(self.law.loss(N, D)))


def fit_parametric(
    N: Array,
    D: Array,
    loss: Array,
    options: FitOptions = FitOptions(),
    *,
    name: str = "approach3",
    weights: Array | None = None,
) -> ParametricFit:
    """Fit L = E + A N^-alpha + B D^-beta to runs of shape (n,) from many starts.

    Minimises the sum of Huber losses of the residuals. Raises FitRefusedError for fewer than six
    runs, fewer than three sizes or token counts, or where no start converges.
    """
    _check_enough(N, D)
    centre = (float(np.log(N).mean()), float(np.log(D).mean()))
    objective = make_objective(N, D, loss, options, centre)
    w = np.ones((1, len(N))) if weights is None else np.atleast_2d(weights)
    starts = make_starts(objective, options, centre, w[0])
    minima = minimise(
        objective, starts, w, free=free_directions(options), tolerance=_tolerance(loss)
    )
    law, best = best_law(minima, centre)
    certificate = certify(minima, best, law, N, D, options)
    return ParametricFit(
        name=name,
        law=law,
        options=options,
        certificate=certificate,
        theta=minima.theta[best],
        centre=centre,
        n_runs=len(N),
    )


def fit_projection(
    N: Array, D: Array, loss: Array, *, weights: Array | None = None, name: str = "projection"
) -> ParametricFit:
    """Fit the surface by least squares on L: variable projection on a grid, then Newton.

    With E, A, B above 0 the projected optimum is a stationary point of the five-parameter least
    squares, so the refinement is the same Newton iteration, from the grid's best points.
    """
    options = FitOptions(link="linear", delta=np.inf)
    return fit_parametric(N, D, loss, options, name=name, weights=weights)


def objective_at(law: LossLaw, N: Array, D: Array, loss: Array, delta: float = 1e-3) -> float:
    """Return Approach 3's sum of Huber losses at given constants."""
    residual = np.abs(np.log(law.loss(N, D)) - np.log(loss))
    huber = np.where(residual <= delta, residual**2 / 2, delta * (residual - delta / 2))
    return float(huber.sum())


def link_jacobian(fit: ParametricFit, N: Array, D: Array) -> tuple[Array, Array]:
    """Return the fit at each row, as ln L or L by its link, and its Jacobian by free constants."""
    objective = make_objective(N, D, np.ones_like(N), fit.options, fit.centre)
    z, jacobian = objective.jacobian(fit.theta)
    if fit.options.link == "linear":
        z, jacobian = np.exp(z), jacobian * np.exp(z)[:, None]
    return z, jacobian @ free_directions(fit.options)


def jacobian_condition(
    law: LossLaw, N: Array, D: Array, options: FitOptions = FitOptions()
) -> float:
    """Return the condition number of d ln L / d(E, A, B, alpha, beta) with columns normalised.

    Only the directions that `options` leave free count.
    """
    logs = np.log([law.A, law.B, max(law.E, 1e-300)])
    theta = np.append(logs, [law.alpha, law.beta])
    objective = make_objective(N, D, np.ones_like(N), options, (0.0, 0.0))
    columns = objective.jacobian(theta)[1] @ free_directions(options)
    norms = np.linalg.norm(columns, axis=0)
    if not (np.isfinite(norms).all() and (norms > 0).all()):
        return float("inf")
    values = np.linalg.svd(columns / norms, compute_uv=False)
    return float(values[0] / values[-1]) if values[-1] > 0 else float("inf")


def _tolerance(loss: Array) -> float:
    """Return the gradient at which a start may stop: less where the loss hardly varies.

    The gradient is of second order in the signal, so that a fixed limit would stop a family whose
    losses differ by 1e-5 long before its optimum.
    """
    return float(1e-11 * min(1.0, 10.0 * np.log(loss).std()) ** 2)


def _check_enough(N: Array, D: Array) -> None:
    if len(N) < 6:
        raise FitRefusedError(f"{len(N)} runs cannot identify five constants; add runs, at least 6")
    if len(np.unique(N)) < 3 or len(np.unique(D)) < 3:
        raise FitRefusedError(
            f"{len(np.unique(N))} sizes and {len(np.unique(D))} token counts cannot identify two "
            "exponents; vary both, at least 3 each"
        )


def make_objective(
    N: Array, D: Array, loss: Array, options: FitOptions, centre: tuple[float, float]
) -> Objective:
    """Return the objective on axes centred at `centre`."""
    return Objective(
        x=np.log(N) - centre[0],
        y=np.log(D) - centre[1],
        loss=loss,
        link=options.link,
        delta=options.delta,
    )


def free_directions(options: FitOptions) -> Array:
    """Return the (5, k) basis of the directions that the options leave free."""
    basis = np.eye(5)
    if options.tie_exponents:
        basis[:, 3] += basis[:, 4]
        basis = np.delete(basis, 4, axis=1)
    if options.fixed_floor is not None:
        basis = np.delete(basis, 2, axis=1)
    return basis


def make_starts(
    objective: Objective, options: FitOptions, centre: tuple[float, float], weights: Array
) -> Array:
    """Return the starting points (s, 5) on the centred axes."""
    if options.starts == "hoffmann":
        axis = (0.0, 0.5, 1.0, 1.5, 2.0)
        offsets = (0.0, 5.0, 10.0, 15.0, 20.0, 25.0)
        raw = product(offsets, offsets, (-1.0, -0.5, 0.0, 0.5, 1.0), axis, axis)
        starts = np.array(list(raw), dtype=np.float64)
        starts[:, 0] -= starts[:, 3] * centre[0]
        starts[:, 1] -= starts[:, 4] * centre[1]
    else:
        level = float(np.log(objective.loss).mean())
        shares, exponents = (-3.0, -1.5, -0.5), (0.2, 0.5, 1.0)
        raw = product(shares, shares, (-1.0, -0.3), exponents, exponents)
        starts = np.array(list(raw), dtype=np.float64)
        starts[:, :3] += level
        starts = np.concatenate([starts, _projected_starts(objective, weights)])
    if options.tie_exponents:
        starts[:, 4] = starts[:, 3]
    if options.fixed_floor is not None:
        starts[:, 2] = np.log(options.fixed_floor)
    return starts


def _projected_starts(objective: Objective, weights: Array, keep: int = 40) -> Array:
    """Return the best points of variable projection on a 32 x 32 grid of exponents."""
    alpha, beta = exponent_grid(0.02, 1.5, 32)
    grid = project(objective.x, objective.y, objective.loss, weights, alpha, beta)
    order = np.argsort(grid.squares)[:keep]
    # A term that the projection leaves out starts small, measured by what the loss varies.
    floor = 1e-3 * float(np.ptp(objective.loss)) + 1e-12 * float(objective.loss.min())
    logs = np.log(np.maximum(grid.coefficients[order][:, [1, 2, 0]], floor))
    return np.column_stack([logs, grid.alpha[order], grid.beta[order]])


def law_from_theta(theta: Array, centre: tuple[float, float]) -> LossLaw:
    """Return the law of a centred theta. Raises ConfigError where a constant overflows."""
    a, b, e, alpha, beta = (float(value) for value in theta)
    with np.errstate(over="ignore"):
        return LossLaw(
            E=float(np.exp(e)),
            A=float(np.exp(a + alpha * centre[0])),
            B=float(np.exp(b + beta * centre[1])),
            alpha=alpha,
            beta=beta,
        )


def best_law(minima: Minima, centre: tuple[float, float]) -> tuple[LossLaw, int]:
    """Return the lowest stationary point that is a law (positive exponents), and its index."""
    theta = minima.theta
    logs = np.abs(theta[:, :2] + theta[:, 3:] * np.asarray(centre))
    usable = (theta[:, 3:] > 0).all(axis=1) & (logs < 600).all(axis=1) & np.isfinite(minima.value)
    if not usable.any():
        raise FitRefusedError(
            "no start reached a law with positive exponents; the runs show no gain from N or D"
        )
    best = int(np.where(usable, minima.value, np.inf).argmin())
    return law_from_theta(theta[best], centre), best


def certify(
    minima: Minima, best: int, law: LossLaw, N: Array, D: Array, options: FitOptions
) -> Certificate:
    """Return the certificate of the start `best`."""
    value = float(minima.value[best])
    margin = AGREE * abs(value) + 1e-18
    agreeing = minima.value <= value + margin
    others = minima.value[~agreeing & (minima.gradient <= GRADIENT_LIMIT)]
    low, high = EXPONENT_BOUNDS
    checks = {
        "E": law.E <= 1e-6,
        "A": law.A > 1e12,
        "B": law.B > 1e12,
        "alpha": not low < law.alpha < high,
        "beta": not low < law.beta < high,
    }
    return Certificate(
        objective=value,
        gradient=float(minima.gradient[best]),
        starts=len(minima.value),
        agreeing=int(agreeing.sum()),
        next_optimum=float(others.min()) if others.size else None,
        at_bounds=tuple(name for name, hit in checks.items() if hit),
        condition=jacobian_condition(law, N, D, options),
    )
