"""Intervals of Approach 2: minima redrawn from residuals, or from noise on the losses."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from llmtrain.scaling.bootstrap import PowerDraws, Unit, draw_lines
from llmtrain.scaling.isoflop import MIN_BUDGETS, IsoflopFit, mean_by_size
from llmtrain.scaling.law import Array, fit_power_law
from llmtrain.spec.errors import FitRefusedError

MIN_VALID = 0.5
"""Budgets with a smaller share of draws that keep their minimum inside the grid are left out."""
Minima = Callable[[Array, Array], Array]
"""From ln x (n,) ascending and ln loss (n, b) to ln x of the b minima; NaN at an end."""


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

    A grid is a design, not a sample, so but for `budget` the sizes stay and the residuals of
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


def draw_noise(
    fit: IsoflopFit,
    columns: tuple[Array, Array, Array, Array],
    read: Minima,
    *,
    sd: float | None,
    n_draws: int,
    seed: int,
) -> tuple[IsoflopFit, PowerDraws]:
    """Return the fit through the median minima of noisy copies of the losses, and its draws.

    `columns` are N, D, loss and budget; `sd` is the noise of one loss in nats per token, None takes
    what neighbours show. A minimum at an end of the grid leaves its budget out of that draw, and a
    budget with fewer than half of its draws is out. Lines weigh each budget by 1 / variance of its
    ln minimum. Raises FitRefusedError for fewer than three budgets left.

    Source: Porian et al. 2024 (arXiv 2406.19146), their 1000 draws of seed noise.
    """
    rng = np.random.default_rng(seed)
    N, D, loss, budget = columns
    rows = [budget == curve.budget for curve in fit.used]
    means = [[mean_by_size(x[own], loss[own]) for x in (N, D)] for own in rows]
    if sd is None:
        noise = np.concatenate([local_noise(*by_params) for by_params, _ in means])
        scale = np.full(len(loss), np.sqrt(np.mean(noise**2)) if len(noise) else 0.0)
    else:
        scale = sd / loss
    minima = np.full((2, n_draws, len(rows)), np.nan)
    step = np.empty((2, len(rows)))
    for k, (own, pair) in enumerate(zip(rows, means, strict=True)):
        for axis, (x, (log_x, log_loss)) in enumerate(zip((N, D), pair, strict=True)):
            shaken = scale[own, None] * rng.standard_normal((own.sum(), n_draws))
            at = np.searchsorted(log_x, np.log(x[own]))
            noise = np.zeros((len(log_x), n_draws))
            np.add.at(noise, at, shaken / np.bincount(at)[at, None])
            minima[axis, :, k] = read(log_x, log_loss[:, None] + noise)
            step[axis, k] = np.ptp(log_x) / (len(log_x) - 1)
    known = np.isfinite(minima).all(axis=0)
    kept = known.mean(axis=0) >= MIN_VALID
    if kept.sum() < MIN_BUDGETS:
        raise FitRefusedError(
            f"{kept.sum()} budgets keep their minimum inside the grid in half of the noise "
            f"draws, needs {MIN_BUDGETS}; widen the grid of sizes, or repeat seeds"
        )
    log_c = np.log([curve.budget for curve in fit.used])[kept]
    minima, step, known = minima[:, :, kept], step[:, kept], known[:, kept]
    # A spread below a third of the step between sizes is the spline's word, not the data's.
    spread = np.maximum(np.nanstd(minima, axis=1), step / 3.0) / known.mean(axis=0)
    weights = 1.0 / spread**2
    centre = np.nanmedian(minima, axis=1)
    laws = [
        fit_power_law(np.exp(log_c), np.exp(x), weights=w)
        for x, w in zip(centre, weights, strict=True)
    ]
    draws = draw_lines(
        np.broadcast_to(log_c, known.shape), minima[0], minima[1], weights=(weights[0], weights[1])
    )
    return replace(fit, params_law=laws[0], tokens_law=laws[1]), draws
