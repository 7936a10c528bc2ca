"""A table's `budget` column against its FLOPs: one count, one unit, or no fit."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmtrain.scaling.diagnose import Finding
from llmtrain.scaling.law import FLOPS_PER_PARAM_TOKEN, Array
from llmtrain.scaling.runs import Runs
from llmtrain.spec.errors import FitRefusedError

FLOPS_RATIO_RANGE = (1 / 30, 30.0)
"""A median of flops / (6 params tokens) outside is a unit, not a convention."""
TOLERANCE = 0.1
"""Budgets this close (relative) to 6 * params * tokens are of that count."""
SHOWN = 6


def flops_from_budgets(
    path: Path, lines: Sequence[int], params: Array, tokens: Array, budget: Array
) -> tuple[Array, bool]:
    """Return the FLOPs of a table without a column of them, and whether they are 6ND.

    Raises FitRefusedError where budgets are no FLOPs, or some rows alone have one and those are not
    6 * params * tokens: the other rows' FLOPs would be of another count.
    """
    plain = FLOPS_PER_PARAM_TOKEN * params * tokens
    known = np.isfinite(budget)
    if not known.any():
        return plain, True
    if known.all():
        ratio = float(np.median(budget / plain))
        if not FLOPS_RATIO_RANGE[0] < ratio < FLOPS_RATIO_RANGE[1]:
            raise FitRefusedError(
                f"{path}: row {lines[0]}: budget {budget[0]:g} against 6 params tokens "
                f"{plain[0]:g} (median ratio {ratio:.3g}); give budget in FLOPs, not PF-days or "
                "exaFLOPs, and single params and tokens"
            )
        return budget, False
    off = _off(plain, budget, TOLERANCE)
    if off.any():
        i = int(off.argmax())
        raise FitRefusedError(
            f"{path}: row {lines[i]}: budget {budget[i]:g} against 6 params tokens {plain[i]:g}, "
            "and other rows have no budget to be their FLOPs; give a flops column, or fill the "
            "budget column"
        )
    return plain, True


def check_budgets(runs: Runs, tolerance: float) -> list[Finding]:
    """Warn of single rows whose FLOPs lie off their budget by more than a factor 1 + `tolerance`.

    Raises FitRefusedError where most of the group do: Approach 2's laws would be in another unit
    than target, costs and surfaces.
    """
    off = _off(runs.flops, runs.budget, tolerance)
    if not off.any():
        return []
    rows = np.flatnonzero(off)
    if 2 * len(rows) > np.isfinite(runs.budget).sum():
        i = int(rows[0])
        ratio = float(np.median(runs.flops[rows] / runs.budget[rows]))
        raise FitRefusedError(
            f"{runs.source}: {runs.run_id[i]}: budget {runs.budget[i]:g} against flops "
            f"{runs.flops[i]:g}, one of {len(rows)} such rows (median flops / budget {ratio:.3g}); "
            "give both in FLOPs of one count, or name the curves with budgets=[...]"
        )
    shown = ", ".join(
        f"{runs.run_id[i]} (budget {runs.budget[i]:g}, flops {runs.flops[i]:g})"
        for i in rows[:SHOWN]
    )
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    message = (
        f"FLOPs lie over {100 * tolerance:g} % off the budget of their curve: {shown}{more}; "
        "correct them, or name the curves with budgets=[...]"
    )
    return [Finding(level="warning", code="budget", message=message)]


def _off(flops: Array, budget: Array, tolerance: float) -> NDArray[np.bool_]:
    known = np.isfinite(budget)
    distance = np.abs(np.log(flops / np.where(known, budget, flops)))
    return np.asarray(distance > np.log1p(tolerance) + 1e-12)
