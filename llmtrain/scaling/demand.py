"""Optima beyond the plain law: tokens that run out, and models that serve many tokens."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from llmtrain.scaling.law import FLOPS_PER_PARAM_TOKEN, LossLaw
from llmtrain.spec.errors import ConfigError

RHO_TOKENS = 15.387756
RHO_PARAMS = 5.309743
"""How fast repeated tokens and excess parameters lose value: R* of Muennighoff et al. 2023."""
INFERENCE_FLOPS = 2.0
"""FLOPs per parameter and served token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RepeatedData:
    """A loss law where only `unique` distinct tokens exist.

    Source: Muennighoff et al. 2023 (arXiv 2305.16264), eq. 5 and 6.
    """

    law: LossLaw
    unique: float
    rho_tokens: float = RHO_TOKENS
    rho_params: float = RHO_PARAMS

    def params_for(self, tokens: float) -> float:
        """Return the size for which `tokens` fresh tokens are optimal."""
        law = self.law
        ratio = law.alpha * law.A / (law.beta * law.B)
        return float(ratio ** (1.0 / law.alpha) * tokens ** (law.beta / law.alpha))

    def effective(self, N: float, D: float) -> tuple[float, float]:
        """Return the sizes N', D' worth as much as N parameters and D tokens with repetition."""
        base_d = min(D, self.unique)
        base_n = min(N, self.params_for(base_d))
        return (
            _saturating(base_n, N / base_n - 1.0, self.rho_params),
            _saturating(base_d, D / base_d - 1.0, self.rho_tokens),
        )

    def loss(self, N: float, D: float) -> float:
        """Return the loss in nats per token."""
        n, d = self.effective(N, D)
        return self.law.loss(n, d)


def _saturating(base: float, excess: float, rho: float) -> float:
    return float(base + base * rho * (1.0 - np.exp(-excess / rho)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimum:
    """A model and its training run."""

    params: float
    tokens: float
    loss: float
    training_flops: float
    total_flops: float
    """Training plus inference."""


def best_for_flops(law: LossLaw, C: float, unique: float | None = None) -> Optimum:
    """Minimise the loss at C = 6 N D, with at most `unique` distinct tokens where given."""
    loss = _loss_of(law, unique)
    centre = float(np.log(law.n_opt(C)))

    def at(log_n: float) -> float:
        n = float(np.exp(log_n))
        return loss(n, C / (FLOPS_PER_PARAM_TOKEN * n))

    n = float(np.exp(_minimum(at, centre - 12.0, centre + 12.0)))
    d = C / (FLOPS_PER_PARAM_TOKEN * n)
    return Optimum(params=n, tokens=d, loss=loss(n, d), training_flops=C, total_flops=C)


def best_for_inference(
    law: LossLaw, loss: float, served: float, unique: float | None = None
) -> Optimum:
    """Minimise 6 N D + 2 N served at L(N, D) = loss, with at most `unique` distinct tokens.

    Source: Sardana et al. 2024 (arXiv 2401.00448), eq. 2. Raises ConfigError where no run reaches
    the loss.
    """
    if loss <= law.E:
        raise ConfigError(f"loss={loss:g} is not above the law's floor E={law.E:g}")
    smallest = float((law.A / (loss - law.E)) ** (1.0 / law.alpha))
    start = np.log(smallest) + 1e-9

    def total(log_n: float) -> float:
        n = float(np.exp(log_n))
        d = _tokens_for(law, n, loss, unique)
        return float(
            np.log(FLOPS_PER_PARAM_TOKEN * n * d + INFERENCE_FLOPS * n * served)
            if np.isfinite(d)
            else 1e3 - log_n
        )

    n = float(np.exp(_minimum(total, start, start + 16.0)))
    d = _tokens_for(law, n, loss, unique)
    if not np.isfinite(d):
        raise ConfigError(
            f"loss={loss:g} is out of reach with unique_tokens={unique:g}: repetition saturates"
        )
    training = FLOPS_PER_PARAM_TOKEN * n * d
    return Optimum(
        params=n,
        tokens=d,
        loss=loss,
        training_flops=training,
        total_flops=training + INFERENCE_FLOPS * n * served,
    )


def _loss_of(law: LossLaw, unique: float | None) -> Callable[[float, float], float]:
    return law.loss if unique is None else RepeatedData(law=law, unique=unique).loss


def _tokens_for(law: LossLaw, N: float, loss: float, unique: float | None) -> float:
    """Return the least tokens that bring N parameters to the loss; infinite where none do."""
    rest = loss - law.E - law.A * N**-law.alpha
    fresh = float((law.B / rest) ** (1.0 / law.beta)) if rest > 0 else np.inf
    if unique is None or fresh <= unique:
        return fresh
    repeated = RepeatedData(law=law, unique=unique)
    low, high = np.log(unique), np.log(unique * 400.0)
    if repeated.loss(N, float(np.exp(high))) > loss:
        return float("inf")
    for _ in range(80):
        middle = (low + high) / 2.0
        if repeated.loss(N, float(np.exp(middle))) > loss:
            low = middle
        else:
            high = middle
    return float(np.exp(high))


def _minimum(function: Callable[[float], float], low: float, high: float) -> float:
    """Return the minimiser on [low, high]: a grid finds the valley, Brent's method its floor."""
    grid = np.linspace(low, high, 241)
    best = int(np.argmin([function(float(value)) for value in grid]))
    bounds = (grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)])
    found = minimize_scalar(function, bounds=bounds, method="bounded", options={"xatol": 1e-12})
    return float(found.x)
