"""Scaling laws in closed form. N parameters, D tokens, C training FLOPs, L nats per token."""

from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from llmtrain.spec.check import check, check_positive
from llmtrain.spec.errors import FitRefusedError

Array = NDArray[np.float64]
LARGEST_LOG = 690.0
"""Coefficients stay within exp(690): exp(709) is the end of a float, and products must fit too."""
FLOPS_PER_PARAM_TOKEN = 6.0
"""C = 6 N D: two FLOPs per weight and token forward, four backward."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerLaw:
    """y = coefficient * x^exponent."""

    coefficient: float
    exponent: float

    def at(self, x: Array | float) -> Array:
        """Return y at `x`."""
        return np.asarray(self.coefficient * np.power(x, self.exponent), dtype=np.float64)

    def inverse(self, y: Array | float) -> Array:
        """Return the x at which the law takes the value `y`."""
        ratio = np.asarray(y, dtype=np.float64) / self.coefficient
        return np.asarray(np.power(ratio, 1.0 / self.exponent), dtype=np.float64)


def fit_power_law(x: Array, y: Array, weights: Array | None = None) -> PowerLaw:
    """Return the least-squares line of ln y on ln x, shapes (n,), as a power law.

    `weights` are inverse variances of ln y; all equal by default. Raises FitRefusedError where the
    line is so steep that its coefficient is no float.
    """
    log_x = np.log(x)
    centre = log_x.mean()
    root = None if weights is None else np.sqrt(weights)
    slope, intercept = np.polyfit(log_x - centre, np.log(y), 1, w=root)
    log_coefficient = float(intercept - slope * centre)
    if not abs(log_coefficient) < LARGEST_LOG:
        raise FitRefusedError(
            f"exponent {slope:.3g} has no finite coefficient; the points span too little compute: "
            "add budgets"
        )
    return PowerLaw(coefficient=float(np.exp(log_coefficient)), exponent=float(slope))


@dataclass(frozen=True, kw_only=True, slots=True)
class LossLaw:
    """L(N, D) = E + A N^-alpha + B D^-beta, with its optimum under C = 6 N D.

    Source: Hoffmann et al. 2022 (arXiv 2203.15556), eq. 2 and 4. The closed forms hold for
    C = 6 N D only; for FLOPs that depend on the shape in another way use `llmtrain.scaling.cost`.
    """

    E: float
    """Irreducible loss in nats per token; 0 is allowed."""
    A: float
    B: float
    alpha: float
    beta: float

    def __post_init__(self) -> None:
        """Refuse constants that are no law."""
        for name in ("A", "B", "alpha", "beta"):
            check_positive(name, getattr(self, name))
        check(np.isfinite(self.E) and self.E >= 0, f"E={self.E!r} must be finite, 0 or above")

    @property
    def a(self) -> float:
        """Exponent of N_opt in C."""
        return self.beta / (self.alpha + self.beta)

    @property
    def b(self) -> float:
        """Exponent of D_opt in C."""
        return self.alpha / (self.alpha + self.beta)

    @property
    def gamma(self) -> float:
        """Exponent of the reducible loss in C along the optimum."""
        return self.alpha * self.beta / (self.alpha + self.beta)

    @property
    def G(self) -> float:  # noqa: N802 - the paper's letter
        """Coefficient of N_opt in C / 6."""
        ratio = self.alpha * self.A / (self.beta * self.B)
        return float(ratio ** (1.0 / (self.alpha + self.beta)))

    @property
    def kappa(self) -> float:
        """Coefficient of the reducible loss in C / 6 along the optimum."""
        return float(self.A * self.G**-self.alpha + self.B * self.G**self.beta)

    @overload
    def loss(self, N: float, D: float) -> float: ...
    @overload
    def loss(self, N: Array, D: Array) -> Array: ...
    def loss(self, N: Array | float, D: Array | float) -> Array | float:
        """Return L in nats per token."""
        return self.E + self.A * np.power(N, -self.alpha) + self.B * np.power(D, -self.beta)

    @property
    def params_law(self) -> PowerLaw:
        """N_opt(C)."""
        return PowerLaw(coefficient=self.G * FLOPS_PER_PARAM_TOKEN**-self.a, exponent=self.a)

    @property
    def tokens_law(self) -> PowerLaw:
        """D_opt(C)."""
        return PowerLaw(coefficient=FLOPS_PER_PARAM_TOKEN**-self.b / self.G, exponent=self.b)

    def n_opt(self, C: Array | float) -> Array:
        """Return the parameters that minimise L at C = 6 N D."""
        return self.params_law.at(C)

    def d_opt(self, C: Array | float) -> Array:
        """Return the tokens that minimise L at C = 6 N D."""
        return self.tokens_law.at(C)

    def loss_opt(self, C: Array | float) -> Array:
        """Return the least L at C = 6 N D."""
        reducible = self.kappa * np.power(np.asarray(C) / FLOPS_PER_PARAM_TOKEN, -self.gamma)
        return np.asarray(self.E + reducible, dtype=np.float64)

    def flops_for_loss(self, L: Array | float) -> Array:
        """Return the least C at which the optimum reaches L; infinite where L <= E."""
        reducible = np.asarray(L, dtype=np.float64) - self.E
        with np.errstate(divide="ignore", invalid="ignore"):
            flops = FLOPS_PER_PARAM_TOKEN * (self.kappa / reducible) ** (1.0 / self.gamma)
        return np.where(reducible > 0, flops, np.inf)

    def wasted_share(self, N: float, D: float) -> float:
        """Return the share of 6 N D that an optimal run of the same loss would not have spent."""
        needed = float(self.flops_for_loss(self.loss(N, D)))
        return 1.0 - needed / (FLOPS_PER_PARAM_TOKEN * N * D)

    def as_dict(self) -> dict[str, float]:
        """Return the five constants by name."""
        return {name: getattr(self, name) for name in ("E", "A", "B", "alpha", "beta")}
