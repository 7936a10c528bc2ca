"""Tables of what to run next, of what trunks would save, and of the model for a demand."""

import numpy as np

from llmtrain.scaling.demand import best_for_flops, best_for_inference, lifetime_flops
from llmtrain.scaling.design import COST_POWER, should_stop
from llmtrain.scaling.parametric import ParametricFit
from llmtrain.scaling.results import GroupAnalysis
from llmtrain.scaling.trunks import COOLDOWN, branch_costs, can_branch, trunks
from llmtrain.scaling.wording import Table, count, flops
from llmtrain.spec.errors import ConfigError

STOP_BELOW = 0.005
"""Relative standard deviation of the forecast loss at which the report says stop."""
LONGEST = 12
SERVED = (0.0, 1.0, 10.0, 100.0)
"""Served tokens over the training tokens of the plain optimum."""


def next_table(group: GroupAnalysis) -> Table | None:
    """Return the runs that would sharpen the forecast most, as runs apart and as branches."""
    chosen = group.next_runs
    if not chosen:
        return None
    n, d = (np.array([getattr(run, name) for run in chosen]) for name in ("params", "tokens"))
    separate = group.cost.per_token(n) * d
    branched = branch_costs(group.runs, n, d, separate, in_turn=True)
    rows = [
        (
            str(i + 1),
            count(run.params),
            count(run.tokens),
            f"{run.tokens / run.params:.3g}",
            flops(separate[i]),
            flops(branched[i]),
            f"{100 * run.sd_before:.2f} %",
            f"{100 * run.sd_after:.2f} %",
        )
        for i, run in enumerate(chosen)
    ]
    ranked = "as a branch" if can_branch(group.runs) else "as a run of its own"
    done = should_stop(chosen, STOP_BELOW)
    rule = "stop, the forecast is" if done else "go on until the forecast is"
    saved = 100.0 * (1.0 - branched.sum() / separate.sum())
    return Table(
        title=f"What to run next, for the loss at {flops(group.target_flops)} FLOPs",
        header=(
            "", "N", "D", "D/N", "FLOPs", "FLOPs as a branch", "sd of the forecast before", "after",
        ),
        rows=tuple(rows),
        note=f"Greedy choice by variance gained per cost^{COST_POWER:g}, a cell's cost being that "
        f"{ranked}, at the noise of these residuals; it trusts the form of the law, so it is a "
        f"floor for the true uncertainty. All of these cost {flops(float(separate.sum()))} FLOPs "
        f"apart and {flops(float(branched.sum()))} as branches ({saved:.0f} % less). "
        f"Stopping rule: {rule} good to {100 * STOP_BELOW:g} % or no run helps by 5 %.",
    )  # fmt: skip


def trunk_table(group: GroupAnalysis) -> Table | None:
    """Return what one constant-rate trunk per size would cost; None without a size run twice."""
    found = trunks(group.runs)
    if not found:
        return None
    rows = [
        (
            count(trunk.params),
            str(trunk.lengths),
            flops(trunk.separate),
            flops(trunk.branched),
            f"{100 * (1 - trunk.branched / trunk.separate):.0f} %",
        )
        for trunk in sorted(found, key=lambda trunk: trunk.branched - trunk.separate)[:LONGEST]
    ]
    separate, branched = (sum(getattr(t, name) for t in found) for name in ("separate", "branched"))
    total = f"{100 * (1 - branched / separate):.0f} %"
    rows.append(("all", "", flops(separate), flops(branched), total))
    schedules = sorted({record.schedule for record in group.runs.records})
    allows = (
        f"The schedule of these runs ({', '.join(schedules)}) allows it."
        if can_branch(group.runs)
        else f"The schedule of these runs ({', '.join(schedules) or 'unknown'}) ties every run to "
        f"its own length; with schedule=wsd the same lengths would cost {total} less."
    )
    left = f" {len(found) - LONGEST} sizes that save less are not shown." * (len(found) > LONGEST)
    return Table(
        title="One constant-rate trunk per size, with cooldown branches",
        header=("N", "lengths", "FLOPs apart", "FLOPs of trunk and branches", "saved"),
        rows=tuple(rows),
        note=f"Every length is a cooldown of {100 * COOLDOWN:g} % of its tokens that leaves one "
        f"trunk (Hägele et al. 2024); each seed has a trunk of its own.{left} {allows}",
    )


def demand_table(group: GroupAnalysis) -> Table | None:
    """Return the model to train when it will serve tokens too; None without a loss surface."""
    surface, C = group.surface, group.target_flops
    if surface is None or not isinstance(surface.fit, ParametricFit):
        return None
    law, cost = surface.fit.law, group.cost
    plain = best_for_flops(law, C, cost=cost)
    rows = []
    for times in SERVED:
        served = times * plain.tokens
        try:
            best = best_for_inference(law, plain.loss, served, cost=cost)
        except ConfigError:  # a loss that rounds to the floor
            return None
        whole = C + lifetime_flops(plain.params, served, cost)
        rows.append(
            (
                count(served),
                count(best.params),
                count(best.tokens),
                f"{best.tokens / best.params:.3g}",
                flops(best.training_flops),
                flops(best.total_flops),
                f"{max(0.0, 100 * (1 - best.total_flops / whole)):.1f} %",
            )
        )
    return Table(
        title=f"Inference demand: the loss {plain.loss:.4f} of {flops(C)} training FLOPs",
        header=(
            "tokens served", "N", "D", "D/N", "training FLOPs", "with inference", "saved",
        ),
        rows=tuple(rows),
        note="A served token costs a third of a trained one (2N of 6N; Sardana et al. 2024); saved "
        f"is against serving the plain optimum. By {surface.title}.",
    )  # fmt: skip
