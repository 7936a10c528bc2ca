"""Does the loss need Farseer's form? A check on the form of the law, never a headline.

L(N, D) = exp(s N^q + S) + exp(B N^b + Q) D^-exp(A N^a + E): floor, amplitude and exponent of the
data term all move with N. Source: Li et al. 2025 (arXiv 2506.10972), nine constants; the letters
are a secondary source's, not checked against the paper. Each stretched exponential is fitted as
s N^q + S = level + slope (e^(q x) - 1) / q in x = ln N - mean, whose limit q = 0 is a power of N.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import least_squares
from scipy.special import fdtrc

from llmtrain.scaling.law import Array
from llmtrain.scaling.parametric import AGREE, FitOptions, ParametricFit, fit_parametric
from llmtrain.scaling.runs import Runs
from llmtrain.spec.errors import FitRefusedError

CONSTANTS, PLAIN = 9, 5
MIN_SIZES, MIN_TOKENS = 5, 4
"""Each size tells floor, amplitude and exponent; five sizes tell how these move."""
SHAPE_LIMIT = 2.0
"""Largest |q|, |b|, |a|: beyond it a curve over ln N is a step."""
GRADIENT_LIMIT = 1e-7
FAR = 60.0
SQUARES = FitOptions(delta=np.inf)


@dataclass(frozen=True, kw_only=True, slots=True)
class FarseerFit:
    """Farseer's form by least squares of ln L, and what it is worth over the five constants."""

    constants: dict[str, float]
    """Named as in the formula; those of a shape at 0 overflow and are not told."""
    objective: float
    """Half the sum of squares, to compare with `plain_objective`."""
    plain_objective: float
    gradient: float
    """Largest component that no limit on a shape holds."""
    starts: int
    agreeing: int
    condition: float
    """Of d ln L by the nine constants: infinite where a slope is 0 and its shape means nothing."""
    F: float
    """F statistic of the four more constants, with 4 and n - 9 degrees of freedom."""
    p_value: float
    aic_gain: float
    """AIC of the five constants minus that of the nine."""
    held_out: tuple[float, float] | None
    """Mean |relative error| on the largest budget's runs, from the smaller ones: this form's, then
    the five constants'; null where the smaller budgets do not identify this form."""

    @property
    def asked_for(self) -> bool:
        """Whether F at 1 % and AIC by 2 agree that the runs need it."""
        return self.p_value < 0.01 and self.aic_gain > 2.0


def check_farseer(runs: Runs) -> FarseerFit | str:
    """Return what Farseer's form is worth on these rows, or why it has no fit."""
    try:
        return fit_farseer(runs)
    except FitRefusedError as error:
        return str(error)


def fit_farseer(runs: Runs) -> FarseerFit:
    """Fit nine and five constants by squares of ln L, on all rows and without the largest budget.

    Raises FitRefusedError where sizes or token counts are too few, or no optimum is certified.
    """
    fit, found = _fit(runs)
    base = fit_parametric(runs.params, runs.tokens, runs.loss, SQUARES)
    plain, n = base.certificate.objective, len(runs)
    floor = 0.5 * n * 1e-20
    old, new = max(plain, floor), max(float(found.cost), floor)
    F = max(0.0, old / new - 1.0) * (n - CONSTANTS) / (CONSTANTS - PLAIN)
    return FarseerFit(
        **fit,
        plain_objective=plain,
        F=F,
        p_value=float(fdtrc(CONSTANTS - PLAIN, n - CONSTANTS, F)),
        aic_gain=float(n * np.log(old / new) - 2.0 * (CONSTANTS - PLAIN)),
        held_out=_held_out(runs),
    )


def _held_out(runs: Runs) -> tuple[float, float] | None:
    if len(runs.budgets) < 3:
        return None
    largest = runs.budgets[-1]
    test, rest = runs.take(runs.budget == largest), runs.take(runs.budget < largest)
    try:
        _, found = _fit(rest)
        base = fit_parametric(rest.params, rest.tokens, rest.loss, SQUARES)
    except FitRefusedError:
        return None
    x, y = np.log(test.params) - base.centre[0], np.log(test.tokens)
    own = np.exp(_model(found.x, x, y)[0]) / test.loss - 1.0
    plain = base.law.loss(test.params, test.tokens) / test.loss - 1.0
    return float(np.abs(own).mean()), float(np.abs(plain).mean())


def _check_enough(runs: Runs) -> None:
    tokens = [len(np.unique(runs.tokens[runs.params == size])) for size in np.unique(runs.params)]
    enough = sum(n >= MIN_TOKENS for n in tokens)
    if enough < MIN_SIZES:
        raise FitRefusedError(
            f"{enough} sizes have {MIN_TOKENS} token counts or more, nine constants need "
            f"{MIN_SIZES}: train the same sizes at more budgets"
        )


def _fit(runs: Runs) -> tuple[dict[str, Any], Any]:
    """Return the certificate's part of the fit and scipy's best result."""
    _check_enough(runs)
    base = fit_parametric(runs.params, runs.tokens, runs.loss, SQUARES)
    x, y = np.log(runs.params) - base.centre[0], np.log(runs.tokens)
    log_loss = np.log(runs.loss)
    starts = _starts(base, x)
    limit = np.tile([np.inf, np.inf, SHAPE_LIMIT], 3)
    found = []
    for start in starts:
        result = least_squares(
            lambda theta: _model(theta, x, y)[0] - log_loss, start,
            lambda theta: _model(theta, x, y)[1], bounds=(-limit, limit), x_scale="jac",
            xtol=1e-15, ftol=1e-15, gtol=1e-14, max_nfev=300,
        )  # fmt: skip
        found.append(result)
    best = min(found, key=lambda result: float(result.cost))
    agreeing = sum(own.cost <= best.cost * (1.0 + AGREE) + 1e-18 for own in found)
    free = best.active_mask == 0
    gradient = float(np.abs(best.grad[free]).max())
    if gradient > GRADIENT_LIMIT or agreeing < 2:
        raise FitRefusedError(
            f"Farseer's form is not certified: gradient {gradient:.1e} (limit "
            f"{GRADIENT_LIMIT:g}), {agreeing} of {len(starts)} starts agree (at least 2); "
            "train the same sizes at more budgets"
        )
    norms = np.linalg.norm(best.jac, axis=0)
    singular = np.linalg.svd(best.jac / np.maximum(norms, 1e-300), compute_uv=False)
    condition = float(singular[0] / singular[-1]) if singular[-1] > 0 else float("inf")
    return {
        "constants": _constants(best.x, base.centre[0]),
        "objective": float(best.cost),
        "gradient": gradient,
        "starts": len(starts),
        "agreeing": agreeing,
        "condition": condition,
    }, best


def _starts(base: ParametricFit, x: Array) -> list[Array]:
    """Return starts around the five constants: each shape up or down, the data exponent tilted."""
    a, b, e, alpha, beta = base.theta
    floor = np.exp(e) + np.exp(a - alpha * x)
    slope, level = np.polyfit(x, np.log(floor), 1)
    amplitude = b + beta * base.centre[1]
    return [
        np.array([level, slope, q, amplitude, turn, shape, np.log(beta), tilt, shape])
        for q in (-0.5, -0.1)
        for tilt in (-0.05, 0.02)
        for shape in (-0.3, 0.3)
        # The amplitude is that at D = 1: it turns with the exponent, or stays.
        for turn in (0.0, tilt * beta * base.centre[1])
    ]


def _stretch(own: Array, x: Array) -> tuple[Array, Array]:
    """Return level + slope (e^(shape x) - 1) / shape and its derivatives, shapes (n,), (n, 3)."""
    level, slope, shape = own
    t = shape * x
    small = np.abs(t) < 1e-4
    safe = np.where(small, 1.0, t)
    phi = np.where(small, 1.0 + t / 2.0 + t * t / 6.0, np.expm1(safe) / safe)
    slant = np.where(
        small, 0.5 + t / 3.0 + t * t / 8.0, (np.exp(safe) - np.expm1(safe) / safe) / safe
    )
    value = level + slope * x * phi
    return value, np.stack([np.ones_like(x), x * phi, slope * x * x * slant], axis=1)


def _model(theta: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """Return ln L and its Jacobian, shapes (n,) and (n, 9)."""
    floor, d_floor = _stretch(theta[:3], x)
    level, d_level = _stretch(theta[3:6], x)
    exponent, d_exponent = _stretch(theta[6:], x)
    # A start may wander where the terms overflow; the clip sends it back by its residuals.
    power = np.exp(np.clip(exponent, -FAR, 5.0))
    u = np.exp(np.clip(floor, -FAR, FAR))
    v = np.exp(np.clip(level - power * y, -FAR, FAR))
    columns = [u[:, None] * d_floor, v[:, None] * d_level, -(v * power * y)[:, None] * d_exponent]
    total = u + v
    return np.log(total), np.concatenate(columns, axis=1) / total[:, None]


def _constants(theta: Array, centre: float) -> dict[str, float]:
    """Return the nine constants of the formula, `centre` being the mean of ln N."""
    names = (("S", "s", "q"), ("Q", "B", "b"), ("E", "A", "a"))
    found = {}
    for (constant, factor, power), own in zip(names, theta.reshape(3, 3), strict=True):
        level, slope, shape = (float(value) for value in own)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            scale = np.divide(slope, shape)
            found[constant] = float(level - scale)
            found[factor] = float(scale * np.exp(-shape * centre))
        found[power] = shape
    return found
