"""The optimum as power laws of C: of one law, or of every draw of a law at once."""

from dataclasses import dataclass

import numpy as np

from llmtrain.scaling.bootstrap import LawDraws, PowerDraws, power_of
from llmtrain.scaling.cost import CostModel
from llmtrain.scaling.law import Array, LossLaw, PowerLaw

LOW, HIGH = 1e15, 1e25
"""Two budgets: along the optimum N, D and the reducible loss are exact powers of C."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Powers:
    """y = coefficient * C^exponent, shapes (b,)."""

    coefficient: Array
    exponent: Array

    def at(self, C: Array) -> Array:
        """Return y per draw at its own C."""
        return power_of(self.coefficient, self.exponent, C)

    def inverse(self, y: float | Array) -> Array:
        """Return the C at which each draw takes the value `y`; infinite where none does."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            found = np.exp(np.log(np.asarray(y) / self.coefficient) / self.exponent)
        return np.where(np.asarray(y) > 0, found, np.inf)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OptimalPath:
    """N_opt(C), D_opt(C) and, for a surface, L_opt(C) = floor + reducible(C)."""

    params: Powers
    tokens: Powers
    reducible: Powers | None
    floor: Array

    def loss_at(self, C: Array) -> Array | None:
        """Return the least loss per draw at its own C; None without a surface."""
        return None if self.reducible is None else self.floor + self.reducible.at(C)

    def flops_for_loss(self, loss: float | Array) -> Array:
        """Return the least C that reaches the loss per draw; infinite at or below the floor."""
        assert self.reducible is not None
        return self.reducible.inverse(loss - self.floor)


def path_of_surfaces(laws: list[LossLaw], cost: CostModel) -> OptimalPath:
    """Return the optima of loss surfaces under a family's cost, shape (len(laws),)."""
    floor = np.array([law.E for law in laws])
    ends = []
    for C in (LOW, HIGH):
        n = np.array([float(cost.n_opt(law, C)) for law in laws])
        d = cost.tokens(C, n)
        terms = zip(laws, n, d, strict=True)
        reducible = np.array([law.A * x**-law.alpha + law.B * y**-law.beta for law, x, y in terms])
        ends.append((n, d, reducible))
    n_path, d_path, l_path = (_through(*pair) for pair in zip(*ends, strict=True))
    return OptimalPath(params=n_path, tokens=d_path, reducible=l_path, floor=floor)


def path_of_powers(draws: PowerDraws) -> OptimalPath:
    """Return the optima of drawn power laws."""
    return OptimalPath(
        params=Powers(coefficient=draws.params_coefficient, exponent=draws.a),
        tokens=Powers(coefficient=draws.tokens_coefficient, exponent=draws.b),
        reducible=None,
        floor=np.zeros(len(draws.a)),
    )


def path_of_laws(params: PowerLaw, tokens: PowerLaw) -> OptimalPath:
    """Return the optimum that two printed or fitted power laws name, shape (1,)."""
    n, d = (
        Powers(coefficient=np.array([law.coefficient]), exponent=np.array([law.exponent]))
        for law in (params, tokens)
    )
    return OptimalPath(params=n, tokens=d, reducible=None, floor=np.zeros(1))


def path_of_draws(draws: LawDraws | PowerDraws, cost: CostModel) -> OptimalPath:
    """Return the optima of every draw."""
    if isinstance(draws, PowerDraws):
        return path_of_powers(draws)
    return path_of_surfaces(draws.laws(), cost)


def _through(low: Array, high: Array) -> Powers:
    exponent = np.log(high / low) / np.log(HIGH / LOW)
    return Powers(coefficient=np.exp(np.log(low) - exponent * np.log(LOW)), exponent=exponent)
