"""Intervals of Approach 2: minima redrawn from residuals, or from noise on the losses."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from llmtrain.scaling.bootstrap import PowerDraws, Unit, draw_lines, draw_weights
from llmtrain.scaling.isoflop import MIN_BUDGETS, MIN_SIZES, IsoflopFit, mean_by_size
from llmtrain.scaling.law import Array, fit_power_law
from llmtrain.spec.errors import FitRefusedError

MIN_VALID = 0.5
"""Budgets with a smaller share of draws that keep their minimum inside the grid are left out."""
Rows = NDArray[np.bool_]
Minima = Callable[[Array, Array], Array]
"""From ln x (n,) ascending and ln loss (n, b) to ln x of the b minima; NaN at an end."""


def bootstrap_isoflop(
    fit: IsoflopFit,
    N: Array,
    D: Array,
    loss: Array,
    budget: Array,
    lineage: NDArray[np.generic],
    *,
    unit: Unit,
    n_draws: int,
    seed: int,
) -> PowerDraws:
    """Redraw the minima of Approach 2 and refit its lines.

    A grid is a design, not a sample, so the sizes stay and the residuals of the parabolas are drawn
    anew: as shares of the fitted loss, each over sqrt(1 - leverage), pooled over the budgets. In
    nats the pool would give the large budgets the noise of the small ones. `budget` resamples the
    curves, `run` and `model` the rows (those of one `lineage` or size together), which loses the
    arms of a curve of few sizes.
    """
    rng = np.random.default_rng(seed)
    curves = fit.used
    log_c = np.log([curve.budget for curve in curves])
    shape = (n_draws, len(curves))
    if unit == "budget":
        picked = rng.integers(0, len(curves), size=shape)
        x = np.log([[curve.params.x, curve.tokens.x] for curve in curves])
        return draw_lines(log_c[picked], x[picked, 0], x[picked, 1])
    own = [budget == curve.budget for curve in curves]
    if unit in ("run", "model"):
        weights = draw_weights(N if unit == "model" else lineage, n_draws, seed)
        minima = [
            np.stack([_weighted_minima(x[k], loss[k], weights[:, k]) for k in own], axis=1)
            for x in (N, D)
        ]
    else:
        minima = _redrawn_minima((N, D), loss, own, rng, n_draws)
    return draw_lines(np.broadcast_to(log_c, shape), minima[0], minima[1])


def _weighted_minima(x: Array, loss: Array, weights: Array) -> Array:
    """Return ln x of the minima of weighted parabolas, weights (b, n); NaN without curvature."""
    u = np.log(x) - np.log(x).mean()
    design = np.vander(u, 3)
    moments = np.einsum("bn,ni,nj->bij", weights, design, design)
    _, size = np.unique(x, return_inverse=True)
    held = (weights[:, :, None] * np.eye(size.max() + 1)[size] > 0).any(axis=1).sum(axis=1)
    moments[held < MIN_SIZES] = np.eye(3)
    p, q, _ = np.linalg.solve(moments, (weights * loss @ design)[:, :, None])[:, :, 0].T
    usable = (held >= MIN_SIZES) & (p > 0)
    return np.where(usable, np.log(x).mean() - q / np.where(usable, 2.0 * p, 1.0), np.nan)


def _redrawn_minima(
    axes: tuple[Array, Array],
    loss: Array,
    budgets: list[Rows],
    rng: np.random.Generator,
    n_draws: int,
) -> list[Array]:
    """Return ln x of the parabolas' minima on both axes, each of shape (n_draws, budgets).

    NaN without curvature. A draw gives a run one new loss, so both axes take the same residuals.
    """
    picks = [rng.integers(0, sum(map(np.sum, budgets)), (n_draws, own.sum())) for own in budgets]
    return [_minima_of(x, loss, budgets, picks) for x in axes]


def _minima_of(x: Array, loss: Array, budgets: list[Rows], picks: list[NDArray[np.int64]]) -> Array:
    """Return ln x of the minima with the residuals `picks` (n_draws, n) of the pool per budget."""
    parts, pool = [], []
    for rows in budgets:
        u = np.log(x[rows])
        design = np.vander(u - u.mean(), 3)
        solve = np.linalg.pinv(design)
        leverage = np.clip(np.einsum("ij,ji->i", design, solve), 0.0, 0.99)
        coefficients = solve @ loss[rows]
        fitted = design @ coefficients
        pool.append((loss[rows] / fitted - 1.0) / np.sqrt(1.0 - leverage))
        parts.append((u.mean(), coefficients, solve * fitted))
    residuals = np.concatenate(pool)
    residuals -= residuals.mean()
    columns = []
    for (centre, coefficients, solve), own in zip(parts, picks, strict=True):
        p, q, _ = (coefficients + residuals[own] @ solve.T).T
        with np.errstate(divide="ignore", invalid="ignore"):
            columns.append(np.where(p > 0, centre - q / (2.0 * p), np.nan))
    return np.stack(columns, axis=1)


def local_noise(log_x: Array, log_loss: Array, runs: Array | None = None) -> Array:
    """Return each inner point's value over what its neighbours lead to expect, as noise of one run.

    Shapes (n,), log_x ascending; point i is a mean of `runs[i]` runs, of one by default. A parabola
    through the two neighbours on one side and the one on the other predicts the point; the
    difference, over the root of what its variance is for runs of unit variance, is returned.
    """
    share = np.ones(len(log_x)) if runs is None else 1.0 / runs
    found = []
    for i in range(1, len(log_x) - 1):
        near = [i - 1, i + 1, i + 2 if i + 2 < len(log_x) else i - 2]
        if near[2] < 0:
            continue
        knots = log_x[near]
        weights = np.array(
            [np.prod([(log_x[i] - v) / (w - v) for v in knots if v != w]) for w in knots]
        )
        variance = share[i] + weights**2 @ share[near]
        found.append((log_loss[i] - weights @ log_loss[near]) / np.sqrt(variance))
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
        runs = [np.unique(N[own], return_counts=True)[1].astype(np.float64) for own in rows]
        pairs = zip(means, runs, strict=True)
        noise = np.concatenate([local_noise(*by_params, n) for (by_params, _), n in pairs])
        scale = np.full(len(loss), np.sqrt(np.mean(noise**2)) if len(noise) else 0.0)
    else:
        scale = sd / loss
    minima = np.full((2, n_draws, len(rows)), np.nan)
    step = np.empty((2, len(rows)))
    for k, (own, pair) in enumerate(zip(rows, means, strict=True)):
        shaken = scale[own, None] * rng.standard_normal((own.sum(), n_draws))
        for axis, (x, (log_x, log_loss)) in enumerate(zip((N, D), pair, strict=True)):
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
