"""The analysis as a wandb run of type `analysis` in the group of the runs that it read."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llmtrain.board.identity import KEY_SIGN, settled_mode, tag_list, wandb_id
from llmtrain.board.mirror import WandbMirror
from llmtrain.scaling.bootstrap import Interval
from llmtrain.scaling.report import ReportFiles
from llmtrain.scaling.results import Analysis, GroupAnalysis
from llmtrain.scaling.verdict import target, verdict
from llmtrain.scaling.wording import flops
from llmtrain.spec.nested import flatten

ESTIMATOR_COLUMNS = (
    "group", "method", "status", "a", "a_low", "a_high", "b", "b_low", "b_high", "runs", "reason",
)  # fmt: skip
POINT_COLUMNS = ("group", "run_id", "budget", "params", "tokens", "flops", "loss", "seed")
MINIMUM_COLUMNS = ("group", "budget", "params", "tokens", "loss", "status")
Cells = list[list[Any]]


def publish(analysis: Analysis, files: ReportFiles, *, warn: Callable[[str], None]) -> str:
    """Log the analysis to wandb as the configuration asks; return where it is, or ''.

    wandb's failures are one warning: the report's files are written before this is called.
    """
    config, group = analysis.config, wandb_group(analysis)
    mode = settled_mode(config.publish)
    if mode == "disabled":
        return ""
    options = {key: value for key, value in dataclasses.asdict(config).items() if key != "publish"}
    init = {
        "project": config.project,
        "entity": config.entity,
        "group": group,
        "job_type": "analysis",
        "name": f"analysis-{group}",
        # Without `resume`, the same analysis again takes the place of the earlier one.
        "id": wandb_id(group, "analysis", analysis.runs.sha256, repr(options)),
        "tags": tag_list("analysis", analysis.runs.conventions.params),
        "config": options | {"source": analysis.runs.source},
        "dir": str(files.law.parent),
    }
    staging = files.law.parent / "wandb" / "staging"
    mirror = WandbMirror(init, mode=mode, metrics={}, rows=(), warn=warn, staging=staging)
    mirror.media(
        tables=tables(analysis),
        charts={f"{_prefix(analysis, g)}isoflop": isoflop_chart(g) for g in analysis.groups},
        images={f"figures/{path.stem}": str(path) for path in sorted(files.figures.glob("*.png"))},
        files=[str(files.law.resolve())],
        artifact=f"law-{group}",
    )
    mirror.finish(summary(analysis))
    return mirror.where


def wandb_group(analysis: Analysis) -> str:
    """Return the runs' own group where they have one, else the name of the table."""
    if analysis.runs.records and len(analysis.groups) == 1:
        return analysis.groups[0].group
    return Path(analysis.runs.source).stem


def _prefix(analysis: Analysis, group: GroupAnalysis) -> str:
    return "" if len(analysis.groups) == 1 else f"{group.group}/"


def tables(analysis: Analysis) -> dict[str, dict[str, Any]]:
    """Return estimators, IsoFLOP points and minima as columns and rows of plain values."""
    found: dict[str, tuple[tuple[str, ...], Cells]] = {
        "estimators": (ESTIMATOR_COLUMNS, []),
        "isoflop_points": (POINT_COLUMNS, []),
        "isoflop_minima": (MINIMUM_COLUMNS, []),
    }
    for group in analysis.groups:
        for estimate in group.estimates:
            numbers = (estimate.a, *_pair(estimate.a_interval), estimate.b)
            ends = (*_pair(estimate.b_interval), estimate.n_runs, estimate.reason)
            row = [group.group, estimate.title, estimate.status, *numbers, *ends]
            found["estimators"][1].append(row)
        runs = group.runs
        columns = (runs.run_id, runs.budget, runs.params, runs.tokens, runs.flops, runs.loss)
        for cells in zip(*columns, runs.seed, strict=True):
            found["isoflop_points"][1].append([group.group, *map(_plain, cells)])
        for curve in group.curves:
            position = (curve.params.x, curve.tokens.x, curve.params.loss)
            minimum = [curve.budget, *map(_plain, position), curve.reason or "used"]
            found["isoflop_minima"][1].append([group.group, *minimum])
    return {
        name: {"columns": list(columns), "rows": rows} for name, (columns, rows) in found.items()
    }


def isoflop_chart(group: GroupAnalysis) -> dict[str, Any]:
    """Return loss against log10 N, a line a budget and one of the minima, for `line_series`."""
    xs, ys, keys = [], [], []
    runs = group.runs
    for budget in runs.budgets:
        rows = np.flatnonzero(runs.budget == budget)
        rows = rows[np.argsort(runs.params[rows])]
        xs.append(np.log10(runs.params[rows]).tolist())
        ys.append(runs.loss[rows].tolist())
        keys.append(flops(float(budget)))
    used = [curve for curve in group.curves if curve.used]
    if used:
        xs.append([float(np.log10(curve.params.x)) for curve in used])
        ys.append([curve.params.loss for curve in used])
        keys.append("minima")
    return {"xs": xs, "ys": ys, "keys": keys, "title": "IsoFLOP: loss", "xname": "log10 N"}


def summary(analysis: Analysis) -> dict[str, Any]:
    """Return exponents with intervals, the recommended model and the verdict, one level deep."""
    runs = analysis.runs
    found: dict[str, Any] = {
        "n_runs": len(runs),
        "n_left_out": len(runs.exclusions),
        "data_sha256": runs.sha256,
        "params_convention": runs.conventions.params,
        "flops_convention": runs.conventions.flops,
    }
    if analysis.expense is not None:
        cost = flatten({"cost": analysis.expense.facts()}, KEY_SIGN)
        found |= {key: value for key, value in cost.items() if not isinstance(value, list)}
    for group in analysis.groups:
        own: dict[str, Any] = {"verdict": " ".join(verdict(group))}
        own["status"] = "refused" if group.main is None else "accepted"
        named = {e.name: e for e in group.estimates if e.status == "accepted"}
        if group.main is not None:
            own["method"] = group.main.title
            named["recommended"] = group.main
        for name, e in named.items():
            own |= _bounded(f"{name}/a", e.a, e.a_interval)
            own |= _bounded(f"{name}/b", e.b, e.b_interval)
        aim = target(group)
        if aim is not None:
            own["target/flops"] = aim.flops
            own |= _bounded("target/params", aim.params, aim.params_interval)
            own |= _bounded("target/tokens", aim.tokens, aim.tokens_interval)
            own |= _bounded("target/loss", aim.loss, aim.loss_interval)
        found |= {f"{_prefix(analysis, group)}{key}": value for key, value in own.items()}
    return {key: value for key, value in found.items() if value is not None}


def _bounded(name: str, value: float | None, bounds: Interval | None) -> dict[str, Any]:
    low, high = _pair(bounds)
    return {name: _plain(value), f"{name}_low": _plain(low), f"{name}_high": _plain(high)}


def _pair(bounds: Interval | None) -> tuple[float | None, float | None]:
    return (None, None) if bounds is None else (bounds.low, bounds.high)


def _plain(value: Any) -> Any:
    """Return JSON's own types, with None for what is no finite number."""
    if isinstance(value, np.str_):
        return str(value)
    return None if value is None or not np.isfinite(value) else float(value)
