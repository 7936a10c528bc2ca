"""FLOPs as recorded, where they are not 6 N D."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmtrain.scaling.law import FLOPS_PER_PARAM_TOKEN, Array, LossLaw

if TYPE_CHECKING:
    from llmtrain.scaling.bootstrap import LawDraws

EXACT = 1e-6
ROUNDED = 5e-5
HALF_RANGE = 300.0
"""Largest |ln N| returned, so that N times N is still a float."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CostModel:
    """C = 6 N D * factor * N^slope: what a family of shapes costs per token, over its own range.

    Attention and the head make FLOPs per weight fall as a family grows. With this form the optimum
    of a loss law at a recorded budget stays a power law:
    N^(alpha + beta (1 + slope)) = alpha A / ((1 + slope) beta B) * (C / (6 factor))^beta.
    """

    factor: float
    slope: float
    worst: float
    """Largest relative error of the form over the runs it was fitted to."""

    @property
    def is_exact(self) -> bool:
        """Whether the FLOPs are 6 N D."""
        return self.factor == 1.0 and self.slope == 0.0

    @property
    def is_rounded(self) -> bool:
        """Whether the FLOPs are 6 N D but for the digits that a table leaves out."""
        return not self.is_exact and abs(self.factor - 1.0) < ROUNDED and abs(self.slope) < ROUNDED

    def per_token(self, N: Array | float) -> Array:
        """Return the training FLOPs of one token; a third of them is the forward pass."""
        per_param = FLOPS_PER_PARAM_TOKEN * self.factor
        return np.asarray(per_param * np.power(N, 1.0 + self.slope), dtype=np.float64)

    def tokens(self, C: Array | float, N: Array | float) -> Array:
        """Return the tokens that N parameters see for C FLOPs."""
        return np.asarray(C / self.per_token(N), dtype=np.float64)

    def exponent(self, alpha: Array | float, beta: Array | float) -> Array:
        """Return the exponent of N_opt in the recorded C."""
        return np.asarray(beta / (alpha + np.multiply(beta, 1.0 + self.slope)))

    def n_opt(self, law: "LossLaw | LawDraws", C: Array | float) -> Array:
        """Return the parameters that minimise the loss at C FLOPs, for a law or each draw."""
        stretch = 1.0 + self.slope
        ratio = np.log(law.alpha * law.A) - np.log(stretch * law.beta * law.B)
        reach = law.beta * np.log(np.asarray(C) / (FLOPS_PER_PARAM_TOKEN * self.factor))
        log_n = (ratio + reach) / (law.alpha + law.beta * stretch)
        # Exponents near 0, as a wild draw has them, would leave the range of a float.
        return np.asarray(np.exp(np.clip(log_n, -HALF_RANGE, HALF_RANGE)), dtype=np.float64)

    def loss_opt(self, law: "LossLaw | LawDraws", C: Array | float) -> Array:
        """Return the least loss at C recorded FLOPs."""
        n = self.n_opt(law, C)
        return np.asarray(law.loss(n, self.tokens(C, n)), dtype=np.float64)


SIX_N_D = CostModel(factor=1.0, slope=0.0, worst=0.0)


def fit_cost(N: Array, D: Array, C: Array) -> CostModel:
    """Fit ln(C / 6ND) as a line in ln N; exactly 6 N D where all ratios are 1."""
    ratio = C / (FLOPS_PER_PARAM_TOKEN * N * D)
    if np.abs(ratio - 1.0).max() < EXACT:
        return SIX_N_D
    if len(np.unique(N)) < 2:
        slope, intercept = 0.0, float(np.log(ratio).mean())
    else:
        centre = np.log(N).mean()
        slope, middle = np.polyfit(np.log(N) - centre, np.log(ratio), 1)
        intercept = middle - slope * centre
    fitted = np.exp(intercept + slope * np.log(N))
    return CostModel(
        factor=float(np.exp(intercept)),
        slope=float(slope),
        worst=float(np.abs(fitted / ratio - 1.0).max()),
    )
