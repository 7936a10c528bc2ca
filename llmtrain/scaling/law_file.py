"""law.json: every fit of an analysis, written by the report and read by predictions."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from llmtrain import __version__
from llmtrain.scaling.bootstrap import LawDraws, PowerDraws, interval
from llmtrain.scaling.compare import Side
from llmtrain.scaling.cost import CostModel
from llmtrain.scaling.envelope import EnvelopeFit
from llmtrain.scaling.estimate import Estimate
from llmtrain.scaling.farseer import FarseerFit
from llmtrain.scaling.interaction import InteractionFit
from llmtrain.scaling.law import LossLaw, PowerLaw
from llmtrain.scaling.parametric import ParametricFit
from llmtrain.scaling.results import Analysis, GroupAnalysis
from llmtrain.scaling.texts import Texts, texts_from
from llmtrain.scaling.verdict import target, verdict
from llmtrain.spec.errors import ConfigError, FitRefusedError
from llmtrain.spec.jsonfile import read_json

SCHEMA = 1
MAX_DRAWS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SavedLaw:
    """One accepted fit of a law.json."""

    name: str
    group: str
    source: str
    params: str
    flops: str
    texts: Texts
    loss_law: LossLaw | None
    params_law: PowerLaw | None
    tokens_law: PowerLaw | None
    cost: CostModel
    draws: LawDraws | PowerDraws
    largest_flops: float
    verdict: str
    """Name of the fit that the report's verdict is by."""


def law_document(analysis: Analysis, command: str) -> dict[str, Any]:
    """Return what law.json holds."""
    runs = analysis.runs
    document: dict[str, Any] = _plain(
        {
            "schema": SCHEMA,
            "version": __version__,
            "command": command,
            "source": runs.source,
            "data_sha256": runs.sha256,
            "conventions": dataclasses.asdict(runs.conventions),
            "options": dataclasses.asdict(analysis.config),
            "exclusions": [
                {"run_id": name, "reason": reason}
                for name, reason in dict.fromkeys(
                    (item.run_id, item.reason)
                    for table in (runs, *(group.runs for group in analysis.groups))
                    for item in table.exclusions
                )
            ],
            "groups": [_group(group) for group in analysis.groups],
            "multipliers": [dataclasses.asdict(item) for item in analysis.multipliers],
        }
    )
    return document


def _group(group: GroupAnalysis) -> dict[str, Any]:
    main, surface = group.main, group.surface
    return {
        "group": group.group,
        "verdict": verdict(group),
        "n_runs": len(group.runs),
        "budgets": group.runs.budgets,
        "budgets_from": group.budgets_from,
        "largest_flops": group.runs.flops.max(),
        "flops_over_6nd": np.quantile(group.runs.flops_ratio, [0.0, 0.5, 1.0]),
        "cost": dataclasses.asdict(group.cost),
        "recommended": {
            "exponents": main.name if main else None,
            "surface": surface.name if surface else None,
        },
        "fits": [_fit(estimate) for estimate in group.estimates],
        "curves": [dataclasses.asdict(curve) for curve in group.curves],
        "findings": [dataclasses.asdict(finding) for finding in group.findings],
        "forecast": dataclasses.asdict(group.held_out) if group.held_out else None,
        "forecast_model": dataclasses.asdict(group.held_model) if group.held_model else None,
        "projected": dataclasses.asdict(aim) if (aim := target(group)) else None,
        "without_small_budgets": [dataclasses.asdict(step) for step in group.steps],
        "sensitivity": dataclasses.asdict(group.sensitivity) if group.sensitivity else None,
        "left_out": [dataclasses.asdict(item) for item in group.left_out],
        "profile_of_a": dataclasses.asdict(group.profile) if group.profile else None,
        "farseer": _farseer(group.farseer),
        "next_runs": [dataclasses.asdict(run) for run in group.next_runs],
        "lr_bracket": dataclasses.asdict(group.rates) if group.rates else None,
        "grid_bias_of_a": group.bias.exponent_shift if group.bias else None,
        "outliers": group.runs.run_id[group.outliers],
        "seed_noise": dataclasses.asdict(group.noise) if group.noise else None,
        "variations": [dataclasses.asdict(own) for own in group.variations],
    }


def _farseer(found: FarseerFit | str | None) -> dict[str, Any] | None:
    if isinstance(found, str):
        return {"status": "refused", "reason": found}
    return None if found is None else {"status": "accepted", **dataclasses.asdict(found)}


def _fit(estimate: Estimate) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": estimate.name,
        "method": estimate.title,
        "status": estimate.status,
        "reason": estimate.reason,
        "n_runs": estimate.n_runs,
        "a": estimate.a,
        "b": estimate.b,
        "a_interval90": _pair(estimate.a_interval),
        "b_interval90": _pair(estimate.b_interval),
    }
    fit, draws = estimate.fit, estimate.draws
    if isinstance(fit, ParametricFit) and isinstance(draws, LawDraws):
        document |= {
            "kind": "surface",
            "parameters": fit.law.as_dict(),
            "intervals90": {
                name: _pair(interval(getattr(draws, name))) for name in fit.law.as_dict()
            },
            "a_at_6nd": fit.law.a,
            "options": dataclasses.asdict(fit.options),
            "certificate": dataclasses.asdict(fit.certificate),
            "draws_failed": draws.failed,
            "draws_renew": draws.renewed,
            "draws": _columns(draws, tuple(fit.law.as_dict())),
        }
    elif fit is not None and not isinstance(fit, ParametricFit) and isinstance(draws, PowerDraws):
        document |= {
            "kind": "power_laws",
            "parameters": {
                "params": dataclasses.asdict(fit.params_law),
                "tokens": dataclasses.asdict(fit.tokens_law),
            },
            "draws_failed": draws.failed,
            "draws": _columns(draws, POWER_COLUMNS),
        }
        if isinstance(fit, InteractionFit):
            document["interaction"] = dataclasses.asdict(fit)
        if isinstance(fit, EnvelopeFit):
            document["hull_points"] = len(fit.rows)
    return document


POWER_COLUMNS = ("params_coefficient", "a", "tokens_coefficient", "b")


def _pair(bounds: Any) -> list[float] | None:
    return None if bounds is None else [bounds.low, bounds.high]


def _columns(draws: LawDraws | PowerDraws, names: tuple[str, ...]) -> dict[str, list[float]]:
    return {
        name: [float(f"{value:.8g}") for value in getattr(draws, name)[:MAX_DRAWS]]
        for name in names
    }


def _plain(value: Any) -> Any:
    """Return JSON's own types; numbers that are not finite become null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def read_law(path: Path, *, fit: str | None, group: str | None, surface: bool) -> SavedLaw:
    """Return a fit of a law.json: the named one, or the recommended one.

    `surface` asks for the recommended loss surface where there is one. Raises ConfigError for a
    file that is no law.json or an unknown name, FitRefusedError for a fit that was refused.
    """
    try:
        document = read_json(path)
        if document["schema"] != SCHEMA:
            raise ConfigError(f"{path} has schema {document['schema']!r}, this version reads 1")
        chosen = _choose_group(path, document["groups"], group)
        recommended = chosen["recommended"]
        order = ("surface", "exponents") if surface else ("exponents", "surface")
        name = fit or recommended[order[0]] or recommended[order[1]]
        if name is None:
            raise FitRefusedError(f"{path}: every fit of group {chosen['group']} was refused")
        return _saved(path, document, chosen, name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"law={path} is no law.json of this version: {error!r}") from error


def read_side(path: Path) -> Side:
    """Return a law.json's recommended surface as one side of a comparison."""
    saved = read_law(path, fit=None, group=None, surface=True)
    if saved.loss_law is None or not isinstance(saved.draws, LawDraws):
        raise FitRefusedError(f"{path} has no accepted loss surface to compare with")
    return Side(
        name=str(path),
        law=saved.loss_law,
        draws=saved.draws,
        cost=saved.cost,
        params=saved.params,
        flops=saved.flops,
        texts=saved.texts,
    )


def _choose_group(path: Path, groups: list[dict[str, Any]], group: str | None) -> dict[str, Any]:
    names = [item["group"] for item in groups]
    if group is None and len(groups) == 1:
        return groups[0]
    if group not in names:
        raise ConfigError(f"{path} holds {len(names)} groups; set group= one of {', '.join(names)}")
    return groups[names.index(group)]


def _saved(path: Path, document: dict[str, Any], group: dict[str, Any], name: str) -> SavedLaw:
    fits = {item["name"]: item for item in group["fits"]}
    if name not in fits:
        raise ConfigError(f"fit={name!r} is not among {', '.join(fits)}")
    found = fits[name]
    if found["status"] != "accepted":
        raise FitRefusedError(f"{path}: fit {name} was refused: {found['reason']}")
    columns: dict[str, Any] = {key: np.array(column) for key, column in found["draws"].items()}
    is_surface = found["kind"] == "surface"
    constants = found["parameters"]
    draws = (LawDraws if is_surface else PowerDraws)(failed=found["draws_failed"], **columns)
    return SavedLaw(
        name=name,
        group=group["group"],
        source=f"{document['source']} ({found['method']})",
        params=document["conventions"]["params"],
        flops=document["conventions"]["flops"],
        texts=texts_from(document["conventions"].get("texts")),
        loss_law=LossLaw(**constants) if is_surface else None,
        params_law=None if is_surface else PowerLaw(**constants["params"]),
        tokens_law=None if is_surface else PowerLaw(**constants["tokens"]),
        cost=CostModel(**group["cost"]),
        draws=draws,
        largest_flops=group["largest_flops"],
        verdict=group["recommended"]["exponents"] or name,
    )
