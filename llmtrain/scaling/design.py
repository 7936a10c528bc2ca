"""Which runs next: the cells that shrink a forecast's variance most for their cost.

Pure functions of a fit and candidate cells, for reports and for the sweep. Source: local optimal
design, as in arXiv 2604.22753: with covariance S of the parameters, a run with Jacobian row j and
noise variance v lowers the summed variance of targets t by sum (t S j)^2 / (v + j S j).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmtrain.scaling.law import Array, LossLaw
from llmtrain.spec.errors import FitRefusedError

COST_POWER = 0.35
"""Gain is divided by cost to this power: 1 would only ever buy the smallest runs, 0 the largest."""
MIN_NOISE = 1e-6
RIDGE = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A chosen candidate."""

    index: int
    sd_before: float
    """Standard deviation of the summed forecast before this run, and after."""
    sd_after: float


@dataclass(frozen=True, kw_only=True, slots=True)
class NextRun:
    """A recommended cell."""

    params: float
    tokens: float
    cost: float
    """In the unit of the candidates' costs: FLOPs, or seconds."""
    sd_before: float
    """Standard deviation of the forecast of ln L at the target before this run, and after."""
    sd_after: float


def law_jacobian(law: LossLaw, N: Array, D: Array) -> Array:
    """Return d ln L / d(E, ln A, ln B, alpha, beta), shape (n, 5)."""
    n_term, d_term = law.A * N**-law.alpha, law.B * D**-law.beta
    columns = (
        np.ones_like(N),
        n_term,
        d_term,
        -n_term * np.log(N),
        -d_term * np.log(D),
    )
    return np.asarray(np.stack(columns, axis=1) / np.reshape(law.loss(N, D), (-1, 1)))


def parameter_covariance(law: LossLaw, N: Array, D: Array, noise: float) -> Array:
    """Return the covariance (5, 5) of (E, ln A, ln B, alpha, beta) under noise of ln L.

    Raises FitRefusedError where the runs do not determine all five.
    """
    jacobian = law_jacobian(law, N, D)
    scale = np.linalg.norm(jacobian, axis=0)
    information = (jacobian / scale).T @ (jacobian / scale)
    if np.linalg.cond(information) > 1.0 / RIDGE:
        raise FitRefusedError(
            "the runs do not determine all five constants, so no next run can be ranked; vary D/N"
        )
    return np.asarray(np.linalg.inv(information) * noise**2 / np.outer(scale, scale))


def variance_gain(covariance: Array, targets: Array, candidates: Array, noise: float) -> Array:
    """Return by how much each candidate row (c, 5) lowers the summed variance of targets (t, 5)."""
    spread = candidates @ covariance
    own = np.einsum("ci,ci->c", spread, candidates)
    return np.asarray(((spread @ targets.T) ** 2).sum(axis=1) / (noise**2 + own))


def after_run(covariance: Array, row: Array, noise: float) -> Array:
    """Return the covariance once a run with Jacobian `row` (5,) is known (Sherman-Morrison)."""
    spread = covariance @ row
    return np.asarray(covariance - np.outer(spread, spread) / (noise**2 + row @ spread))


def next_cells(
    covariance: Array,
    candidates: Array,
    costs: Array,
    targets: Array,
    *,
    noise: float,
    n_cells: int,
    power: float = COST_POWER,
) -> list[Choice]:
    """Choose `n_cells` candidates one by one, each by variance gain over cost^power.

    A pure function of any fit, for a sweep that places its own cells: `covariance` (p, p) of the
    parameters so far, Jacobian rows of `candidates` (c, p) and `targets` (t, p) as in
    `law_jacobian`, `costs` (c,) in any unit, `noise` the standard deviation of one run. After each
    choice the covariance is what it will be once that run is known, whatever it measures; a
    candidate may be chosen again, as a second seed. Where runs come in one by one, call it with
    n_cells=1 and the covariance of the new fit.
    """
    chosen = []
    for _ in range(n_cells):
        gain = variance_gain(covariance, targets, candidates, noise)
        best = int((gain / costs**power).argmax())
        before = _sd(covariance, targets)
        covariance = after_run(covariance, candidates[best], noise)
        chosen.append(Choice(index=best, sd_before=before, sd_after=_sd(covariance, targets)))
    return chosen


def next_runs(
    law: LossLaw,
    runs: tuple[Array, Array],
    target: tuple[float, float],
    candidates: tuple[Array, Array, Array],
    *,
    noise: float,
    n_runs: int,
    power: float = COST_POWER,
) -> list[NextRun]:
    """Choose `n_runs` cells for a loss law's forecast of ln L at one point, by `next_cells`.

    `runs` are N and D so far, `target` N and D of the forecast, `candidates` N, D and cost (FLOPs,
    or FLOPs times measured seconds per FLOP; a cooldown branch costs its branch only). `noise` is
    the standard deviation of ln L. Raises FitRefusedError where the runs determine no law.
    """
    noise = max(noise, MIN_NOISE)
    n, d, cost = candidates
    chosen = next_cells(
        parameter_covariance(law, *runs, noise),
        law_jacobian(law, n, d),
        cost,
        law_jacobian(law, np.array([target[0]]), np.array([target[1]])),
        noise=noise,
        n_cells=n_runs,
        power=power,
    )
    return [
        NextRun(
            params=float(n[choice.index]),
            tokens=float(d[choice.index]),
            cost=float(cost[choice.index]),
            sd_before=choice.sd_before,
            sd_after=choice.sd_after,
        )
        for choice in chosen
    ]


def trunk_and_branches(
    tokens: Array, flops_per_token: float, cooldown: float
) -> NDArray[np.float64]:
    """Return the extra FLOPs of each token count when all branch off one constant-rate trunk.

    `tokens` ascending; each branch repeats its last `cooldown` share as an annealed branch, and the
    trunk is paid once, by whichever count reaches further. Source: Hägele et al. 2024
    (arXiv 2405.18392).
    """
    ends = (1.0 - cooldown) * tokens
    reached = np.concatenate([[0.0], ends[:-1]])
    return branch_flops(tokens, flops_per_token, reached, cooldown)


def branch_flops(
    tokens: Array, flops_per_token: Array | float, reached: Array | float, cooldown: float
) -> NDArray[np.float64]:
    """Return the FLOPs of runs of `tokens` that branch off a trunk already at `reached` tokens.

    The trunk goes on to (1 - cooldown) * tokens where it is not there yet; the cooldown follows.
    """
    further = np.maximum(0.0, (1.0 - cooldown) * tokens - reached)
    return np.asarray(flops_per_token * (further + cooldown * tokens))


def should_stop(chosen: Sequence[NextRun], tolerance: float) -> bool:
    """Return whether the forecast is good to `tolerance` (sd of ln L), or no run helps by 5 %."""
    if not chosen:
        return True
    first = chosen[0]
    return first.sd_before <= tolerance or first.sd_after > 0.95 * first.sd_before


def _sd(covariance: Array, targets: Array) -> float:
    return float(np.sqrt(np.einsum("ti,ij,tj->", targets, covariance, targets)))
