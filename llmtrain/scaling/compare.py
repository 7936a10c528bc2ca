"""Two sweeps at matched conventions: how much less compute the second needs for the same loss."""

from dataclasses import dataclass

import numpy as np

from llmtrain.scaling.bootstrap import Interval, LawDraws, interval
from llmtrain.scaling.cost import CostModel
from llmtrain.scaling.law import Array, LossLaw
from llmtrain.scaling.texts import NO_TEXTS, UNDECLARED, Texts, loss_scale
from llmtrain.spec.errors import FitRefusedError


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Side:
    """One sweep's surface, as a report or a law.json has it."""

    name: str
    law: LossLaw
    draws: LawDraws
    cost: CostModel
    params: str
    flops: str
    texts: Texts = NO_TEXTS


@dataclass(frozen=True, kw_only=True, slots=True)
class Multiplier:
    """FLOPs of A over FLOPs of B for the loss that B reaches."""

    flops: float
    """Of B."""
    loss: float
    """Of B, at its optimum for these FLOPs, in B's nats per token."""
    value: float
    """Above 1: B needs less compute. Infinite where A never reaches the loss."""
    interval: Interval | None


def compute_multiplier(base: Side, other: Side, flops: Array) -> list[Multiplier]:
    """Return the multiplier of `other` over `base` at each of B's budgets, with 90 % intervals.

    Draws of the two sweeps are paired as independent. Raises FitRefusedError where the two count
    parameters or FLOPs differently, or their losses are of different text.
    """
    scale, _ = loss_scale(base.texts, other.texts)
    for what, mine, theirs in (
        ("parameters", base.params, other.params),
        ("FLOPs", base.flops, other.flops),
    ):
        if mine != theirs:
            raise FitRefusedError(
                f"{base.name} counts {what} as {mine} and {other.name} as {theirs}; fit both under "
                "one convention first"
            )
    # Draws of equal seeds would move together: one side is shuffled, so that pairs are independent.
    laws = base.draws.laws()
    order = np.random.default_rng(0).permutation(len(base.draws.E))
    mine_shuffled = [laws[i] for i in order]
    pairs = list(zip(mine_shuffled, other.draws.laws(), strict=False))
    found = []
    for C in flops:
        loss = float(other.cost.loss_opt(other.law, C))
        values = np.array(
            [
                flops_to_reach(mine, base.cost, scale * float(other.cost.loss_opt(theirs, C))) / C
                for mine, theirs in pairs
            ]
        )
        value = flops_to_reach(base.law, base.cost, scale * loss) / float(C)
        bounds = interval(values) if np.isfinite(values).mean() > 0.95 else None
        found.append(Multiplier(flops=float(C), loss=loss, value=value, interval=bounds))
    return found


def comparison_notes(base: Side, other: Side) -> tuple[str, ...]:
    """Return what a reader of the multipliers must know: what was converted or not declared."""
    _, notes = loss_scale(base.texts, other.texts)
    counts = {"parameters": base.params, "FLOPs": base.flops}
    silent = [what for what, count in counts.items() if count == UNDECLARED]
    if silent:
        what = " and ".join(silent)
        notes += (f"taken to be counted alike, since neither declares how: {what}",)
    return notes


def flops_to_reach(law: LossLaw, cost: CostModel, loss: float) -> float:
    """Return the least recorded FLOPs at which the optimum reaches `loss`; inf below E."""
    if loss <= law.E:
        return float("inf")
    # Along the optimum the reducible loss is an exact power of C, so two points fix it.
    low, high = (float(cost.loss_opt(law, C)) - law.E for C in (1e15, 1e25))
    slope = np.log(high / low) / np.log(1e10)
    return float(1e15 * np.exp(np.log((loss - law.E) / low) / slope))
