"""Does the surface depend on where the search began?"""

from dataclasses import dataclass

import numpy as np

from llmtrain.scaling.law import Array, LossLaw
from llmtrain.scaling.newton import minimise
from llmtrain.scaling.parametric import (
    AGREE,
    ParametricFit,
    free_directions,
    make_objective,
    objective_at,
)
from llmtrain.scaling.published import REGISTRY
from llmtrain.scaling.runs import Runs

RANDOM_STARTS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedStart:
    """The search from one published law's constants."""

    law: str
    objective: float
    """Sum of Huber losses at the constants themselves; NaN for another loss than Approach 3's."""
    agrees: bool
    """The search from there ends at the fit's optimum."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sensitivity:
    """Searches from elsewhere."""

    published: tuple[PublishedStart, ...]
    random_starts: int
    random_agreeing: int
    better: float | None
    """A lower objective than the fit's, where any of these searches found one."""


def check_sensitivity(fit: ParametricFit, runs: Runs, seed: int) -> Sensitivity:
    """Search again from published constants and at random."""
    columns = (runs.params, runs.tokens, runs.loss)
    laws = [(own.key, own.loss_law) for own in REGISTRY if own.loss_law is not None]
    published = np.array([_theta(law, fit.centre) for _, law in laws])
    starts = np.concatenate([published, _random(runs.loss, seed)])
    if fit.options.tie_exponents:
        starts[:, 4] = starts[:, 3]
    if fit.options.fixed_floor is not None:
        starts[:, 2] = np.log(fit.options.fixed_floor)
    minima = minimise(
        make_objective(*columns, fit.options, fit.centre),
        starts,
        np.ones((1, len(runs))),
        free=free_directions(fit.options),
    )
    best = fit.certificate.objective
    margin = AGREE * abs(best) + 1e-18
    value = np.where(np.isfinite(minima.value), minima.value, np.inf)
    agrees = np.abs(value - best) <= margin
    # Below a law with positive exponents lie only optima that are none.
    lower = (value < best - margin) & (minima.theta[:, 3:] > 0).all(axis=1)
    is_huber = fit.options.link == "log" and np.isfinite(fit.options.delta)
    return Sensitivity(
        published=tuple(
            PublishedStart(
                law=key,
                objective=objective_at(law, *columns, fit.options.delta)
                if is_huber
                else float("nan"),
                agrees=bool(agrees[i]),
            )
            for i, (key, law) in enumerate(laws)
        ),
        random_starts=RANDOM_STARTS,
        random_agreeing=int(agrees[len(laws) :].sum()),
        better=float(value[lower].min()) if lower.any() else None,
    )


def _theta(law: LossLaw, centre: tuple[float, float]) -> Array:
    return np.array(
        [
            np.log(law.A) - law.alpha * centre[0],
            np.log(law.B) - law.beta * centre[1],
            np.log(law.E),
            law.alpha,
            law.beta,
        ]
    )


def _random(loss: Array, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    level = float(np.log(loss).mean())
    low = [level - 6.0, level - 6.0, level - 3.0, 0.05, 0.05]
    high = [level, level, level, 1.5, 1.5]
    return rng.uniform(low, high, size=(RANDOM_STARTS, 5))
