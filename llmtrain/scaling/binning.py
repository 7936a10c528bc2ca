"""Which IsoFLOP curve a row belongs to, and which rows repeat another."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from llmtrain.scaling.law import Array
from llmtrain.scaling.runs import Runs

EXACT = 1e-3
"""FLOPs this close (relative) are one exact budget."""
MIN_ROWS = 3


def assign_budgets(runs: Runs, budgets: Sequence[float], tolerance: float) -> tuple[Runs, str]:
    """Fill `Runs.budget`, and say in one line how.

    Without a list, budgets that records or a table's budget column bring stay. With one, rows snap
    to the nearest of `budgets` (in log C) within a factor of 1 + `tolerance`. Else rows of equal
    FLOPs (to 0.1 %) are one curve, and where most rows have no such partner, clusters of log C with
    gaps wider than the tolerance.
    """
    if len(budgets) == 0 and np.isfinite(runs.budget).any():
        return runs, "budgets as planned"
    if len(budgets) > 0:
        snapped = _snap(runs.flops, np.sort(np.asarray(budgets, dtype=np.float64)), tolerance)
        n_kept = int(np.isfinite(snapped).sum())
        how = f"FLOPs within a factor {1 + tolerance:g} of the given budgets ({n_kept} rows)"
        return replace(runs, budget=snapped), how
    exact = _cluster(runs.flops, EXACT)
    if np.isfinite(exact).mean() >= 0.5:
        return replace(runs, budget=exact), "rows of equal FLOPs"
    clusters = _cluster(runs.flops, tolerance)
    spread = _widest(runs.flops, clusters)
    if spread > (1.0 + tolerance) ** 2:
        how = "none: FLOPs do not fall into curves; name them with budgets=[...]"
        return runs, how
    return replace(runs, budget=clusters), f"clusters of FLOPs, gaps over {100 * tolerance:g} %"


def _snap(flops: Array, budgets: Array, tolerance: float) -> Array:
    nearest = np.abs(np.log(flops)[:, None] - np.log(budgets)[None, :]).argmin(axis=1)
    budget = budgets[nearest]
    distance = np.abs(np.log(flops / budget))
    return np.where(distance <= np.log1p(tolerance), budget, np.nan)


def _cluster(flops: Array, tolerance: float) -> Array:
    """Return the geometric mean of each row's cluster; NaN for clusters under MIN_ROWS rows."""
    order = np.argsort(flops, kind="stable")
    gaps = np.diff(np.log(flops[order])) > np.log1p(tolerance)
    label = np.concatenate([[0], np.cumsum(gaps)])
    budget = np.full(len(flops), np.nan)
    for cluster in np.unique(label):
        rows = order[label == cluster]
        if len(rows) >= MIN_ROWS:
            values = flops[rows]
            same = np.ptp(values) == 0.0
            budget[rows] = values[0] if same else np.exp(np.log(values).mean())
    return budget


def _widest(flops: Array, budget: Array) -> float:
    members = [flops[budget == value] for value in np.unique(budget[np.isfinite(budget)])]
    return max((float(m.max() / m.min()) for m in members), default=np.inf)


def drop_duplicates(runs: Runs) -> Runs:
    """Keep the lowest loss of rows that repeat group, FLOPs, parameters, tokens, shape and seed.

    Rows that differ in a declared seed are replicas and all stay; a learning-rate sweep at one cell
    is not, and its best row stands for it.
    """
    declared = np.stack([runs.d_model, runs.n_layers, runs.seed])
    cells = np.stack([runs.params, runs.tokens, runs.flops])
    keys = np.concatenate([cells, np.nan_to_num(declared, nan=-1.0)])
    best: dict[tuple[object, ...], int] = {}
    for i in range(len(runs)):
        key = (str(runs.group[i]), *keys[:, i].tolist())
        if key not in best or runs.loss[i] < runs.loss[best[key]]:
            best[key] = i
    drop = np.ones(len(runs), dtype=bool)
    drop[list(best.values())] = False
    return runs.without(drop, "repeats another row's cell and seed; the lowest loss stands for it")
