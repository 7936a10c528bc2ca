"""The reporting checklist, filled from the runs.

Items after Li et al. 2025, "(Mis)Fitting" (arXiv 2502.18969). What the records do not say is said
to be unknown, never left out.
"""

from collections.abc import Callable

import numpy as np

from llmtrain.scaling.law import Array
from llmtrain.scaling.parametric import ParametricFit
from llmtrain.scaling.results import GroupAnalysis
from llmtrain.scaling.runs import Runs
from llmtrain.scaling.texts import loss_unit
from llmtrain.scaling.wording import Table, count, flops, span
from llmtrain.spec.record import RunRecord

UNKNOWN = "unknown: a table does not say"


def checklist_table(group: GroupAnalysis) -> Table:
    """Return the checklist of one group."""
    rows = (*_form(group), *_training(group.runs), *_collection(group), *_claims(group))
    return Table(title="Checklist", header=("part", "item", "here"), rows=rows)


def _form(group: GroupAnalysis) -> tuple[tuple[str, str, str], ...]:
    surface = group.surface
    fitted = "Huber on ln L, sum over runs"
    starts, free = "–", "five free"
    if surface is not None and isinstance(surface.fit, ParametricFit):
        options, proof = surface.fit.options, surface.fit.certificate
        kind = "squares" if np.isinf(options.delta) else f"Huber, delta {options.delta:g}"
        fitted = f"{kind}, of {'ln L' if options.link == 'log' else 'L'}, sum over runs"
        fixed = options.fixed_floor
        if options.constrained:
            free = f"{5 - options.tie_exponents - (fixed is not None)} free"
            free += ", alpha = beta" if options.tie_exponents else ""
            free += "" if fixed is None else f", E = {fixed:g} given"
        starts = (
            f"damped Newton from {proof.starts} starts, {proof.agreeing} agree; objective "
            f"{proof.objective:.6g}, gradient {proof.gradient:.0e}, condition {proof.condition:.0f}"
        )
    given = group.runs.conventions
    low, middle, high = np.quantile(group.runs.flops_ratio, [0.0, 0.5, 1.0])
    return (
        (
            "form",
            "equation",
            f"L = E + A N^-alpha + B D^-beta; {free}; {loss_unit(given.texts.metric)}",
        ),
        ("form", "loss function", fitted),
        ("form", "optimiser and certificate", starts),
        ("form", "N counts", given.params),
        ("form", "C counts", given.flops + (", imputed" if given.flops_imputed else "")),
        ("form", "C / 6ND", f"least {low:.4g}, median {middle:.4g}, most {high:.4g}"),
    )


def _training(runs: Runs) -> tuple[tuple[str, str, str], ...]:
    rows = [
        ("training", "runs and sizes", f"{len(runs)} runs, {len(np.unique(runs.params))} sizes"),
        ("training", "range of N", _range(runs.params)),
        ("training", "range of D", _range(runs.tokens)),
        ("training", "range of D/N", _range(runs.tokens / runs.params)),
    ]
    items: tuple[tuple[str, Callable[[RunRecord], object]], ...] = (
        ("d_model x n_layers", lambda r: f"{r.d_model}x{r.n_layers}"),
        ("data", lambda r: r.data_name),
        ("tokenizer, vocabulary", lambda r: f"{r.tokenizer_id[:8]}, {r.vocab_size}"),
        ("context", lambda r: r.seq_len),
        ("unique tokens", lambda r: count(r.unique_tokens)),
        ("optimizer", lambda r: r.optimizer),
        ("recipe for lr, batch, warmup", lambda r: r.recipe),
        ("schedule, matched to D", lambda r: f"{r.schedule}, {'yes' if r.annealed else 'no'}"),
        ("sequence-length warmup", lambda r: r.seq_len_warmup),
        ("parametrization", lambda r: r.parametrization),
        ("precision", lambda r: r.dtype),
        ("hardware", lambda r: r.hardware.get("device", "unknown")),
        ("seeds", lambda r: r.seed),
        ("code", lambda r: r.code_id),
    )
    for name, value in items:
        found = list(dict.fromkeys(str(value(record)) for record in runs.records))
        shown = ", ".join(found[:12]) + (f", ... ({len(found)})" if len(found) > 12 else "")
        rows.append(("training", name, shown or UNKNOWN))
    if runs.records:
        epochs = max(record.epochs for record in runs.records)
        rows.append(("training", "most epochs", f"{epochs:.3g}"))
    return tuple(rows)


def _collection(group: GroupAnalysis) -> tuple[tuple[str, str, str], ...]:
    runs = group.runs
    tokens = sorted({record.val_tokens for record in runs.records})
    evaluated = ", ".join(map(count, tokens)) + " tokens" if tokens else UNKNOWN
    return (
        ("collection", "rows", f"last checkpoint of each run; {len(runs.left_out)} left out"),
        ("collection", "curves", group.budgets_from),
        ("collection", "metric", f"validation loss, {loss_unit(runs.conventions.texts.metric)}"),
        ("collection", "evaluated on", evaluated),
        ("collection", "smoothing", "none"),
        ("collection", "FLOPs spent", flops(_spent(runs))),
        ("collection", "data hash", runs.sha256[:16]),
    )


def _spent(runs: Runs) -> float:
    """Return the FLOPs the runs executed themselves: of branches of one trunk, its part once."""
    if not runs.records:
        return float(runs.flops.sum())
    shares = [r.flops_spent / r.flops[r.flops_convention] for r in runs.records]
    return float(runs.flops @ np.array(shares))


def _claims(group: GroupAnalysis) -> tuple[tuple[str, str, str], ...]:
    main = group.main
    reach = group.target_flops / float(group.runs.flops.max())
    claim = "none"
    if main is not None and main.a is not None and main.b is not None:
        claim = (
            f"a {main.a:.4f} {span(main.a_interval)}, b {main.b:.4f} {span(main.b_interval)}, "
            f"{main.title}"
        )
    return (
        ("claim", "exponents, 90 %", claim),
        ("claim", "target over largest run", f"{reach:.3g}"),
    )


def _range(values: Array) -> str:
    return f"{count(float(values.min()))} to {count(float(values.max()))}"
