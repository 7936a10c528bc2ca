"""Profile likelihood: how much worse the best fit gets when an exponent is held fixed."""

from dataclasses import dataclass

import numpy as np

from llmtrain.scaling.bootstrap import Interval
from llmtrain.scaling.law import Array
from llmtrain.scaling.newton import minimise
from llmtrain.scaling.parametric import ParametricFit, make_objective

CHI2_90 = 2.7055
"""90 % point of chi-squared with one degree of freedom."""
POINTS = 61


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Profile:
    """Likelihood-ratio statistic over values of a parameter; 0 at the fit."""

    values: Array
    ratio: Array
    interval: Interval | None
    """Where the ratio stays under chi-squared's 90 % point; null where an end is not reached."""


def likelihood_ratio(fit: ParametricFit, objective: Array) -> Array:
    """Return twice the log-likelihood lost against the fit's objective.

    For a least-squares fit: the errors are Gaussian with unknown variance, n ln(S / S0).
    """
    floor = max(fit.certificate.objective, 1e-300)
    return np.asarray(fit.n_runs * np.log(np.maximum(objective, floor) / floor))


def profile_exponent(fit: ParametricFit, N: Array, D: Array, loss: Array) -> Profile:
    """Return the profile of a = beta / (alpha + beta) over the rows of `fit`.

    At each a the exponents move along beta = alpha a / (1 - a) only, and E, A, B freely.
    """
    objective = make_objective(N, D, loss, fit.options, fit.centre)
    reach = min(0.45, max(0.05, 2.0 * min(fit.law.a, 1.0 - fit.law.a)))
    values = fit.law.a + np.linspace(-reach, reach, POINTS)
    values = values[(values > 0.02) & (values < 0.98)]
    slopes = np.repeat(values / (1.0 - values), 3)
    bases = np.zeros((len(slopes), 5, 4))
    bases[:, :3, :3] = np.eye(3)
    bases[:, 3, 3], bases[:, 4, 3] = 1.0, slopes
    starts = np.repeat(fit.theta[None], len(slopes), axis=0)
    law = fit.law
    alphas = [(law.alpha, law.beta * (1.0 - a) / a, law.gamma / a) for a in values]
    starts[:, 3] = np.array(alphas).ravel()
    starts[:, 4] = starts[:, 3] * slopes
    found = minimise(objective, starts, np.ones((1, len(N))), free=bases, max_steps=100)
    ratio = likelihood_ratio(fit, found.value.reshape(-1, 3).min(axis=1))
    return Profile(values=values, ratio=ratio, interval=_crossings(values, ratio, fit.law.a))


def _crossings(values: Array, ratio: Array, best: float) -> Interval | None:
    ends = []
    for side in (values <= best, values >= best):
        x, y = values[side], ratio[side]
        order = np.argsort(np.abs(x - best))
        x, y = x[order], y[order]
        above = np.flatnonzero(y > CHI2_90)
        if not len(above) or above[0] == 0:
            return None
        k = int(above[0])
        share = (CHI2_90 - y[k - 1]) / (y[k] - y[k - 1])
        ends.append(float(x[k - 1] + share * (x[k] - x[k - 1])))
    return Interval(low=ends[0], high=ends[1])


def profile_map(
    fit: ParametricFit,
    runs: tuple[Array, Array, Array],
    reach: tuple[float, float],
    points: int = 41,
) -> tuple[Array, Array, Array]:
    """Return alpha (p,), beta (p,) and the likelihood ratio (beta, alpha) on a grid around the fit.

    `runs` are N, D and loss of the fit's rows; `reach` how far the grid goes in alpha and in beta.
    E, A and B are refitted at every pair.
    """
    objective = make_objective(*runs, fit.options, fit.centre)
    share = np.linspace(-1.0, 1.0, points)
    alpha = np.maximum(fit.law.alpha + reach[0] * share, 1e-3)
    beta = np.maximum(fit.law.beta + reach[1] * share, 1e-3)
    starts = np.repeat(fit.theta[None], points * points, axis=0)
    starts[:, 3] = np.tile(alpha, points)
    starts[:, 4] = np.repeat(beta, points)
    weights = np.ones((1, len(runs[0])))
    found = minimise(objective, starts, weights, free=np.eye(5)[:, :3], max_steps=60)
    return alpha, beta, likelihood_ratio(fit, found.value).reshape(points, points)
