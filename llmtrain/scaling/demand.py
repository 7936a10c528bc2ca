"""Optima beyond the plain law: tokens that run out, and models that serve many tokens."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, minimize_scalar

from llmtrain.scaling.cost import SIX_N_D, CostModel
from llmtrain.scaling.law import LossLaw
from llmtrain.spec.errors import ConfigError

RHO_TOKENS = 15.387756
RHO_PARAMS = 5.309743
"""How fast repeated tokens and excess parameters lose value: R* of Muennighoff et al. 2023."""
INFERENCE_SHARE = 1.0 / 3.0
"""FLOPs of a served token over those of a trained one: forward only, 2N of 6N."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RepeatedData:
    """A loss law where only `unique` distinct tokens exist.

    Source: Muennighoff et al. 2023 (arXiv 2305.16264), eq. 5 and 6.
    """

    law: LossLaw
    unique: float
    cost: CostModel = SIX_N_D
    rho_tokens: float = RHO_TOKENS
    rho_params: float = RHO_PARAMS

    def params_for(self, tokens: float) -> float:
        """Return the size for which `tokens` fresh tokens are optimal."""
        law = self.law
        ratio = law.alpha * law.A / ((1.0 + self.cost.slope) * law.beta * law.B)
        return float(ratio ** (1.0 / law.alpha) * tokens ** (law.beta / law.alpha))

    def tokens_for(self, N: float, loss: float) -> float:
        """Return the least tokens that bring N parameters to the loss; infinite where none do."""
        law = self.law
        if self.loss(N, self.unique) > loss:
            # From here on N' stands still and only D' grows, so its closed form inverts.
            needed = _fresh_tokens(law, self.effective(N, self.unique)[0], loss)
            left = 1.0 - (needed / self.unique - 1.0) / self.rho_tokens
            if not left > 0.0:
                return float("inf")
            return self.unique * (1.0 - self.rho_tokens * float(np.log(left)))
        fresh = _fresh_tokens(law, N, loss)
        if self.params_for(fresh) >= N:
            return fresh
        # More parameters than these tokens are worth: they count for less, and D makes up for it.
        ends = np.log(fresh), np.log(self.unique)
        return float(np.exp(brentq(lambda x: self.loss(N, float(np.exp(x))) - loss, *ends)))

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


def best_for_flops(
    law: LossLaw, C: float, unique: float | None = None, cost: CostModel = SIX_N_D
) -> Optimum:
    """Minimise the loss at C training FLOPs, with at most `unique` distinct tokens where given."""
    limited = None if unique is None else RepeatedData(law=law, unique=unique, cost=cost)
    loss = law.loss if limited is None else limited.loss
    centre = float(np.log(cost.n_opt(law, C)))

    def at(log_n: float) -> float:
        n = float(np.exp(log_n))
        return loss(n, float(cost.tokens(C, n)))

    n = float(np.exp(_minimum(at, centre - 12.0, centre + 12.0)))
    d = float(cost.tokens(C, n))
    return Optimum(params=n, tokens=d, loss=loss(n, d), training_flops=C, total_flops=C)


def best_for_inference(
    law: LossLaw,
    loss: float,
    served: float,
    unique: float | None = None,
    cost: CostModel = SIX_N_D,
) -> Optimum:
    """Minimise training plus inference, 6 N D + 2 N served, at L(N, D) = loss.

    With at most `unique` distinct tokens where given; under another `cost` a served token is a
    third of a trained one. Source: Sardana et al. 2024 (arXiv 2401.00448), eq. 2. Raises
    ConfigError where no run reaches the loss.
    """
    if loss <= law.E:
        raise ConfigError(f"loss={loss:g} is not above the law's floor E={law.E:g}")
    limited = None if unique is None else RepeatedData(law=law, unique=unique, cost=cost)

    def tokens(n: float) -> float:
        return _fresh_tokens(law, n, loss) if limited is None else limited.tokens_for(n, loss)

    def total(log_n: float) -> float:
        n = float(np.exp(log_n))
        d = tokens(n)
        if not np.isfinite(d):
            return 1e3 - log_n
        return float(np.log(cost.per_token(n) * (d + INFERENCE_SHARE * served)))

    start = np.log((law.A / (loss - law.E)) ** (1.0 / law.alpha)) + 1e-9
    n = float(np.exp(_minimum(total, start, start + 16.0)))
    d = tokens(n)
    if not np.isfinite(d):
        raise ConfigError(
            f"loss={loss:g} is out of reach with unique_tokens={unique:g}: repetition saturates"
        )
    training = float(cost.per_token(n)) * d
    return Optimum(
        params=n,
        tokens=d,
        loss=loss,
        training_flops=training,
        total_flops=training + lifetime_flops(n, served, cost),
    )


def lifetime_flops(N: float, served: float, cost: CostModel = SIX_N_D) -> float:
    """Return the FLOPs of serving `served` tokens: 2 N each where training costs 6 N."""
    return float(cost.per_token(N)) * INFERENCE_SHARE * served


def _fresh_tokens(law: LossLaw, N: float, loss: float) -> float:
    """Return the tokens that bring N parameters to the loss without repetition."""
    rest = loss - law.E - law.A * N**-law.alpha
    return float((law.B / rest) ** (1.0 / law.beta)) if rest > 0 else float("inf")


def _minimum(function: Callable[[float], float], low: float, high: float) -> float:
    """Return the minimiser on [low, high]: a grid finds the valley, Brent's method its floor."""
    grid = np.linspace(low, high, 241)
    best = int(np.argmin([function(float(value)) for value in grid]))
    bounds = (grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)])
    found = minimize_scalar(function, bounds=bounds, method="bounded", options={"xatol": 1e-12})
    return float(found.x)
