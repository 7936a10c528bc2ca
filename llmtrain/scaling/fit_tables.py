"""Tables of what was fitted."""

import numpy as np

from llmtrain.scaling.bootstrap import LawDraws, interval
from llmtrain.scaling.law import LossLaw
from llmtrain.scaling.parametric import ParametricFit
from llmtrain.scaling.results import Analysis, GroupAnalysis
from llmtrain.scaling.wording import Table, count, flops, span


def estimator_table(group: GroupAnalysis) -> Table:
    """Return every method with its exponents and intervals."""
    rows = []
    for e in group.estimates:
        known = e.a is not None and e.b is not None
        rows.append(
            (
                e.title,
                f"{e.a:.4f}" if known else "–",
                span(e.a_interval),
                f"{e.b:.4f}" if known else "–",
                span(e.b_interval),
                str(e.n_runs),
                "accepted" if e.status == "accepted" else f"refused: {e.reason}",
            )
        )
    given = group.runs.conventions
    note = (
        f"a: N_opt ~ C^a, b: D_opt ~ C^b, 90 % intervals. N is {given.params}, C is {given.flops}. "
    )
    note += _renewed(group)
    note += (
        "C = 6ND holds exactly."
        if group.cost.is_exact
        else "C = 6ND holds to rounding."
        if group.cost.is_rounded
        else f"C is not 6ND: C = 6ND x {group.cost.factor:.4g} N^{group.cost.slope:+.4f} over "
        f"these runs (worst {100 * group.cost.worst:.1f} %), and the surfaces follow it."
    )
    return Table(
        title="Estimators side by side",
        header=("method", "a", "90 %", "b", "90 %", "runs", "status"),
        rows=tuple(rows),
        note=note,
    )


def _renewed(group: GroupAnalysis) -> str:
    """Return what the surfaces' intervals rest on."""
    draws = [(e.title, e.draws) for e in group.estimates if isinstance(e.draws, LawDraws)]
    rows = ", ".join(title for title, own in draws if own.renewed == "rows")
    residuals = ", ".join(title for title, own in draws if own.renewed == "residuals")
    found = f"Residuals are redrawn on the grid as it is for {residuals}. " if residuals else ""
    return found + (f"Whole rows are resampled for {rows}. " if rows else "")


def surface_table(group: GroupAnalysis) -> Table | None:
    """Return constants and certificates of the surface fits; None where none ran."""
    rows = []
    for e in group.estimates:
        if not isinstance(e.fit, ParametricFit):
            continue
        law, proof = e.fit.law, e.fit.certificate
        rows.append(
            (
                e.title,
                *(f"{value:.5g}" for value in law.as_dict().values()),
                f"{law.a:.4f}",
                f"{proof.objective:.6g}",
                f"{proof.gradient:.0e}",
                f"{proof.agreeing}/{proof.starts}",
                "–" if proof.next_optimum is None else f"{proof.next_optimum:.4g}",
                f"{proof.condition:.0f}",
                ", ".join(proof.at_bounds) or "none",
            )
        )
    if not rows:
        return None
    return Table(
        title="Loss surfaces L = E + A N^-alpha + B D^-beta",
        header=(
            "fit", "E", "A", "B", "alpha", "beta", "a (C = 6ND)", "objective (sum)", "gradient",
            "starts agreeing", "next optimum", "condition", "at a limit",
        ),
        rows=tuple(rows),
        note="Certificates: the objective is a sum over runs; the gradient is its largest "
        "component at the optimum; condition is that of d ln L by the constants (unit columns).",
    )  # fmt: skip


def interaction_table(group: GroupAnalysis) -> Table | None:
    """Return the surface with a term in N and D together, its certificate and what it gains."""
    fit = group.interaction
    if fit is None:
        return None
    constants = (fit.E, fit.A, fit.B, fit.alpha, fit.beta, fit.K)
    return Table(
        title="Does the loss need a term in N and D together?",
        header=(
            "E", "A", "B", "alpha", "beta", "K", "K/(A B), 90 %", "objective (sum)", "gradient",
            "starts agreeing", "condition", "F", "p", "AIC gained",
        ),
        rows=(
            (
                *(f"{value:.5g}" for value in constants),
                span(fit.share_interval, ".3g"),
                f"{fit.objective:.6g}",
                f"{fit.gradient:.0e}",
                f"{fit.agreeing}/{fit.starts}",
                f"{fit.condition:.0f}",
                f"{fit.F:.3g}",
                f"{fit.p_value:.2g}",
                f"{fit.aic_gain:+.1f}",
            ),
        ),
        note="L = E + A N^-alpha + B D^-beta + K N^-alpha D^-beta by squares of ln L, against the "
        "same without K. F has 1 and n - 6 degrees of freedom; below p = 0.01 with more than 2 "
        "of AIC gained, the five-constant law misses something that extrapolation will show.",
    )  # fmt: skip


def farseer_table(group: GroupAnalysis) -> Table | None:
    """Return Farseer's form beside the five constants, with its certificate and what it gains."""
    fit = group.farseer
    if fit is None or isinstance(fit, str):
        return None
    held = ("–", "–") if fit.held_out is None else [f"{100 * own:.2f} %" for own in fit.held_out]
    return Table(
        title="Does the loss need Farseer's form?",
        header=(
            "objective (sum)", "of five constants", "gradient", "starts agreeing", "condition",
            "F", "p", "AIC gained", "held-out error", "of five constants",
        ),
        rows=(
            (
                f"{fit.objective:.6g}",
                f"{fit.plain_objective:.6g}",
                f"{fit.gradient:.0e}",
                f"{fit.agreeing}/{fit.starts}",
                f"{fit.condition:.3g}",
                f"{fit.F:.3g}",
                f"{fit.p_value:.2g}",
                f"{fit.aic_gain:+.1f}",
                *held,
            ),
        ),
        note="L = exp(s N^q + S) + exp(B N^b + Q) D^-exp(A N^a + E), by squares of ln L, against "
        "the five constants by the same. F has 4 and n - 9 degrees of freedom. Held-out: mean "
        "|error| on the largest budget's runs, forecast from the smaller budgets. A check of the "
        "form: no exponent and no prediction comes from it.",
    )  # fmt: skip


def constants_table(group: GroupAnalysis) -> Table | None:
    """Return the constants of the recommended surface with intervals."""
    surface = group.surface
    if surface is None or not isinstance(surface.draws, LawDraws):
        return None
    assert isinstance(surface.fit, ParametricFit)
    law: LossLaw = surface.fit.law
    rows = [
        (name, f"{value:.5g}", span(interval(getattr(surface.draws, name)), ".4g"))
        for name, value in law.as_dict().items()
    ]
    return Table(
        title=f"Constants of {surface.title}",
        header=("constant", "value", "90 %"),
        rows=tuple(rows),
        note=f"{surface.draws.failed} draws did not converge and are not counted.",
    )


def curve_table(group: GroupAnalysis) -> Table | None:
    """Return the minima of the IsoFLOP curves."""
    if not group.curves:
        return None
    rows = []
    for c in group.curves:
        found = np.isfinite(c.params.x)
        rows.append(
            (
                flops(c.budget),
                str(c.n_runs),
                str(c.n_sizes),
                count(c.params.x) if found else "–",
                count(c.tokens.x) if np.isfinite(c.tokens.x) else "–",
                f"{c.params.loss:.4f}" if found else "–",
                c.reason or "used",
            )
        )
    return Table(
        title="IsoFLOP curves",
        header=("FLOPs", "runs", "sizes", "N_opt", "D_opt", "loss at minimum", "status"),
        rows=tuple(rows),
        note=f"Curves: {group.budgets_from}. N_opt and D_opt are read from separate parabolas, in "
        "ln N and in ln D.",
    )


def variation_table(group: GroupAnalysis) -> Table | None:
    """Return a and N at the target with one choice made otherwise at a time."""
    if not group.variations or group.main is None:
        return None
    a, n = group.variations[0].a, group.variations[0].params
    rows = []
    for own in group.variations:
        cells = ("–", "–", "–", f"refused: {own.reason}")
        if own.a is not None and own.params is not None and a is not None and n is not None:
            shift, ratio = f"{own.a - a:+.4f}", f"{own.params / n:.3f}"
            cells = (f"{own.a:.4f}", shift, count(own.params), ratio)
        rows.append((own.fit, own.change, *cells))
    given = group.runs.conventions
    return Table(
        title="One choice made otherwise at a time",
        header=(
            "fit", "change", "a", "a - headline's",
            f"N at {flops(group.target_flops)}", "N / headline's",
        ),
        rows=tuple(rows),
        note=f"The first row is the headline (N: {given.params}, C: {given.flops}). N is each "
        "row's own count, at the same training counted its own way: never compare exponents or "
        "sizes of different counts. Approach 2 needs runs of equal C, so C is counted otherwise "
        "for the surface only.",
    )  # fmt: skip


def multiplier_table(analysis: Analysis) -> Table | None:
    """Return how much less compute this sweep needs than the one it is compared with."""
    if not analysis.multipliers:
        return None
    rows = [
        (flops(item.flops), f"{item.loss:.4f}", f"{item.value:.3f}", span(item.interval))
        for item in analysis.multipliers
    ]
    return Table(
        title=f"Compute multiplier over {analysis.config.against}",
        header=("FLOPs of this sweep", "its loss", "the other's FLOPs over these", "90 %"),
        rows=tuple(rows),
        note="Above 1, this sweep needs less compute for equal loss. The last row is the target. "
        + " ".join(f"{note[0].upper()}{note[1:]}." for note in analysis.multiplier_notes),
    )
