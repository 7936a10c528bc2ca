"""What a family costs as constant-rate trunks with cooldown branches, beside separate runs."""

from dataclasses import dataclass

import numpy as np

from llmtrain.scaling.design import branch_flops, trunk_and_branches
from llmtrain.scaling.law import Array
from llmtrain.scaling.runs import Runs

COOLDOWN = 0.2
"""Share of a run's tokens in its cooldown: the upper end of Hägele et al. 2024."""
BRANCHING = ("wsd", "constant")
"""Schedules whose stable part serves every length."""
SAME_LENGTH = 0.01
"""Token counts this close, relatively, are one length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trunk:
    """One shape's runs, separate and as branches of one trunk; a seed is a trunk of its own."""

    params: float
    lengths: int
    """Token counts it serves."""
    separate: float
    """FLOPs."""
    branched: float
    """FLOPs."""


def can_branch(runs: Runs) -> bool:
    """Return whether every record's schedule has a constant part that branches can leave."""
    schedules = {record.schedule for record in runs.records}
    return bool(schedules) and schedules <= set(BRANCHING)


def trunks(runs: Runs, cooldown: float = COOLDOWN) -> tuple[Trunk, ...]:
    """Return the trunk of every size and seed with more than one token count, ascending in N."""
    found: dict[float, list[Trunk]] = {}
    seeds = np.nan_to_num(runs.seed, nan=-1.0)
    for n, seed in sorted(set(zip(runs.params.tolist(), seeds.tolist(), strict=True))):
        rows = (runs.params == n) & (seeds == seed)
        tokens = np.unique(runs.tokens[rows])
        if len(tokens) < 2:
            continue
        per_token = float(np.median(runs.flops[rows] / runs.tokens[rows]))
        one = Trunk(
            params=n,
            lengths=len(tokens),
            separate=float(per_token * tokens.sum()),
            branched=float(trunk_and_branches(tokens, per_token, cooldown).sum()),
        )
        found.setdefault(n, []).append(one)
    return tuple(
        Trunk(
            params=n,
            lengths=max(one.lengths for one in group),
            separate=sum(one.separate for one in group),
            branched=sum(one.branched for one in group),
        )
        for n, group in found.items()
    )


def branch_costs(
    runs: Runs, N: Array, D: Array, C: Array, *, in_turn: bool, cooldown: float = COOLDOWN
) -> Array:
    """Return the FLOPs of cells (c,) that cost C apart, each as a branch of the runs at hand.

    `in_turn`: each cell also finds the trunks of the cells before it. A cell that was run before is
    another seed, and that needs a trunk of its own.
    """
    costs = []
    for i in range(len(N)):
        earlier = i if in_turn else 0
        same = np.concatenate([runs.params, N[:earlier]]) == N[i]
        tokens = np.concatenate([runs.tokens, D[:earlier]])[same]
        again = bool((np.abs(tokens / D[i] - 1.0) < SAME_LENGTH).any())
        reached = (1.0 - cooldown) * tokens.max(initial=0.0)
        branch = branch_flops(D[i : i + 1], C[i] / D[i], reached, cooldown)
        costs.append(float(C[i]) if again else float(branch[0]))
    return np.array(costs)
