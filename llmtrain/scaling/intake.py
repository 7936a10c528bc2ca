"""Guards on the table itself, before any fit: units, conventions, mixtures, repeats, left out."""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from llmtrain.scaling.budget_column import FLOPS_RATIO_RANGE
from llmtrain.scaling.diagnose import Finding
from llmtrain.scaling.lr_bracket import repeated_rates
from llmtrain.scaling.runs import Runs
from llmtrain.scaling.texts import NATS, loss_unit
from llmtrain.spec.words import plural

FLOPS_RATIO_SPREAD = 1.5
LEAST_PARAMS, LEAST_TOKENS = 2e4, 2e5
"""A table whose largest values lie below counts in thousands, millions or billions."""
RATIO_RANGE = (1e-2, 1e6)
"""Median tokens per parameter of any real family."""
LARGEST_LOSS = 12.5
"""ln(vocab_size) of the largest vocabularies: no loss in nats per token stays above."""
SAME_SIZE = 0.01


def check_runs(runs: Runs) -> list[Finding]:
    """Return what the rows of one group say about themselves."""
    found = [Finding(level="note", code="source", message=text) for text in runs.remarks]
    found += [
        *_excluded(runs),
        *_metric(runs),
        *_units(runs),
        *_conventions(runs),
        *_mixed(runs),
        *_code(runs),
        *_troubled(runs),
    ]
    return found + _near_twins(runs)


def check_rates(runs: Runs) -> list[Finding]:
    """Warn of cells that were run at several peak rates under one multiplier."""
    n_repeated = repeated_rates(runs)
    if n_repeated == 0:
        return []
    message = (
        f"{n_repeated} cells were run at several peak rates with one seed: the lowest loss stands "
        "for each, which is biased low against cells of one run; recipe.lr_multiplier marks rates "
        "as a bracket"
    )
    return [_warn("rates", message)]


def _warn(code: str, message: str) -> Finding:
    return Finding(level="warning", code=code, message=message)


def _excluded(runs: Runs) -> list[Finding]:
    left_out = runs.left_out
    if not left_out:
        return []
    reasons = Counter(item.reason for item in left_out)
    shown = "; ".join(f"{n} x {reason}" for reason, n in reasons.most_common(6))
    more = f"; {len(reasons) - 6} other reasons" if len(reasons) > 6 else ""
    message = f"{plural(len(left_out), 'row')} left out, each listed at the end: {shown}{more}"
    return [_warn("excluded", message)]


def _metric(runs: Runs) -> list[Finding]:
    unit = loss_unit(runs.conventions.texts.metric)
    if unit == NATS:
        return []
    message = (
        f"losses are declared in {unit}, not in nats per token: the constants are of that unit, "
        "and compare only with laws of it"
    )
    return [_warn("metric", message)]


def _units(runs: Runs) -> list[Finding]:
    found = []
    n, d = float(runs.params.max()), float(runs.tokens.max())
    ratio = float(np.median(runs.tokens / runs.params))
    cost = float(np.median(runs.flops_ratio))
    if n < LEAST_PARAMS or d < LEAST_TOKENS or not RATIO_RANGE[0] < ratio < RATIO_RANGE[1]:
        message = (
            f"params reach {n:.3g} and tokens {d:.3g}, {ratio:.3g} tokens per parameter: give "
            "single parameters and tokens, not millions or billions; FLOPs and predictions need it"
        )
        found.append(_warn("units", message))
    elif not FLOPS_RATIO_RANGE[0] < cost < FLOPS_RATIO_RANGE[1]:
        message = (
            f"flops are {cost:.3g} times 6 params tokens at the median: give FLOPs, not PF-days or "
            "exaFLOPs, and tokens seen in all epochs"
        )
        found.append(_warn("units", message))
    sizes = {record.vocab_size for record in runs.records}
    limit = float(np.log(max(sizes))) if sizes else LARGEST_LOSS
    high = int((runs.loss > limit).sum())
    if high:
        message = (
            f"{high} losses lie above {limit:.3g}, the loss of a guess: take the logarithm of "
            "perplexities, nats per token are asked for; give diverged rows a status"
        )
        found.append(_warn("loss", message))
    return found


def _conventions(runs: Runs) -> list[Finding]:
    found = []
    ratio = runs.flops_ratio
    low, high = float(ratio.min()), float(ratio.max())
    convention = runs.conventions
    if convention.flops_imputed:
        found.append(
            Finding(level="note", code="flops", message="no flops column: C = 6 * params * tokens")
        )
    elif high / low > FLOPS_RATIO_SPREAD:
        found.append(
            Finding(
                level="warning",
                code="conventions",
                message=f"flops / (6 params tokens) runs from {low:.3g} to {high:.3g}: FLOPs per "
                "parameter vary with the size here, so exponents under C = 6ND and under the "
                "recorded FLOPs differ",
            )
        )
    if "undeclared" in (convention.params, convention.flops):
        found.append(
            Finding(
                level="note",
                code="conventions",
                message=f"parameter count {convention.params}, FLOP count {convention.flops}: "
                "compare exponents only with fits of the same counts",
            )
        )
    return found


def _mixed(runs: Runs) -> list[Finding]:
    found = []
    for name, values in runs.traits.items():
        distinct = sorted({str(value) for value in values} - {""})
        if len(distinct) > 1:
            message = f"runs of {len(distinct)} {name}s are fitted together: {', '.join(distinct)}"
            found.append(_warn("mixed", message))
    return found


def _code(runs: Runs) -> list[Finding]:
    """Warn where runs of one sweep come from different code or environments."""
    found = []
    codes = _counted("unknown" if not name else str(name) for name in runs.code)
    if len(codes) > 1:
        message = f"runs of {len(codes)} states of the code are fitted together: {_listed(codes)}"
        found.append(_warn("code", message))
    for package in sorted({name for record in runs.records for name in record.versions}):
        own = _counted(record.versions.get(package, "none") for record in runs.records)
        if len(own) > 1:
            message = f"runs under {len(own)} versions of {package}: {_listed(own)}"
            found.append(_warn("code", message))
    return found


def _troubled(runs: Runs) -> list[Finding]:
    """Flag runs that skipped updates or had spikes; they stay: to drop them would favour luck."""
    found = []
    skipped = [record.n_skipped / record.n_steps for record in runs.records if record.n_skipped]
    if skipped:
        message = (
            f"{plural(len(skipped), 'run')} skipped updates that were not finite, up to "
            f"{100 * max(skipped):.2g} % of their steps; their tokens count in full"
        )
        found.append(_warn("skipped", message))
    spikes = [record.n_spikes for record in runs.records if record.n_spikes]
    if spikes:
        message = (
            f"{plural(len(spikes), 'run')} had spikes in the training loss, {sum(spikes)} in all"
        )
        found.append(Finding(level="note", code="spikes", message=message))
    return found


def _counted(values: Iterable[str]) -> list[tuple[str, int]]:
    return Counter(values).most_common()


def _listed(counted: list[tuple[str, int]]) -> str:
    shown = ", ".join(f"{name[:24]} ({plural(n, 'run')})" for name, n in counted[:4])
    return shown + (", ..." if len(counted) > 4 else "")


def _near_twins(runs: Runs) -> list[Finding]:
    """Flag sizes of one budget that differ by less than 1 %: one size told twice, or a misprint."""
    pairs = 0
    for budget in runs.budgets:
        sizes = np.unique(runs.params[runs.budget == budget])
        pairs += int((np.diff(sizes) < SAME_SIZE * sizes[:-1]).sum())
    if not pairs:
        return []
    message = f"{pairs} pairs of sizes within 1 % at one budget: all stay, as separate sizes"
    return [_warn("duplicates", message)]
