"""What a reader wants first: the verdict in five lines, and the tables of a report."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from llmtrain.scaling.analysis import Analysis, GroupAnalysis
from llmtrain.scaling.bootstrap import Interval, LawDraws, PowerDraws, interval
from llmtrain.scaling.forecast import Forecast
from llmtrain.scaling.isoflop import IsoflopFit
from llmtrain.scaling.law import LossLaw
from llmtrain.scaling.parametric import ParametricFit


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A titled table of text."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """The optimal model at the target budget."""

    flops: float
    params: float
    params_interval: Interval | None
    tokens: float
    tokens_interval: Interval | None
    loss: float | None
    loss_interval: Interval | None
    params_from: str
    """Method behind N and D."""
    loss_from: str


def count(value: float) -> str:
    """Return a count to three digits: 812, 1.24k, 72.2B, 1.33T."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            number = value / size
            places = 2 if number < 9.995 else 1 if number < 99.95 else 0
            return f"{number:,.{places}f}{unit}"
    return f"{value:.3g}"


def flops(value: float) -> str:
    """Return FLOPs with three digits and without zeros: 1e+18 as 1e18."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def span(bounds: Interval | None, form: str = ".3f") -> str:
    """Return [low, high], or a dash where there is no interval."""
    return "–" if bounds is None else f"[{bounds.low:{form}}, {bounds.high:{form}}]"


def count_span(bounds: Interval | None) -> str:
    """Return an interval of counts."""
    return "–" if bounds is None else f"[{count(bounds.low)}, {count(bounds.high)}]"


def target(group: GroupAnalysis) -> Target | None:
    """Return the recommended model at the target budget; None where every fit is refused."""
    main, surface = group.main, group.surface
    C = group.target_flops
    if main is None:
        return None
    if isinstance(main.fit, IsoflopFit) and isinstance(main.draws, PowerDraws):
        n, d = float(main.fit.params_law.at(C)), float(main.fit.tokens_law.at(C))
        n_draws, d_draws = main.draws.n_opt(C), main.draws.d_opt(C)
    else:
        assert isinstance(main.fit, ParametricFit)
        assert isinstance(main.draws, LawDraws)
        n = float(group.cost.n_opt(main.fit.law, C))
        d = float(group.cost.tokens(C, n))
        n_draws = main.draws.n_opt(C, group.cost)
        d_draws = group.cost.tokens(C, n_draws)
    loss, loss_draws = None, np.array([])
    if surface is not None:
        assert isinstance(surface.fit, ParametricFit)
        assert isinstance(surface.draws, LawDraws)
        loss = float(group.cost.loss_opt(surface.fit.law, C))
        loss_draws = np.array([group.cost.loss_opt(law, C) for law in surface.draws.laws()])
    return Target(
        flops=C,
        params=n,
        params_interval=interval(n_draws),
        tokens=d,
        tokens_interval=interval(d_draws),
        loss=loss,
        loss_interval=interval(loss_draws),
        params_from=main.title,
        loss_from=surface.title if surface is not None else "",
    )


def verdict(group: GroupAnalysis) -> list[str]:
    """Return the answer in at most five lines of plain text."""
    main, aim = group.main, target(group)
    if main is None or aim is None:
        reasons = "; ".join(f"{e.title}: {e.reason}" for e in group.estimates if e.reason)
        return [f"No law: every method refuses these runs. {reasons}"]
    counted = group.runs.conventions
    lines = [
        f"N_opt grows as C^{main.a:.3f} {span(main.a_interval)} and D_opt as C^{main.b:.3f} "
        f"{span(main.b_interval)} by {main.title} (90 % intervals; N {counted.params}, "
        f"C {counted.flops}).",
        f"At C = {flops(aim.flops)} train N = {count(aim.params)} "
        f"{count_span(aim.params_interval)} on D = {count(aim.tokens)} tokens "
        f"{count_span(aim.tokens_interval)}, {aim.tokens / aim.params:.3g} tokens per parameter.",
    ]
    if aim.loss is not None:
        lines.append(
            f"Expected loss there {aim.loss:.4f} {span(aim.loss_interval, '.4f')} nats per token "
            f"({aim.loss_from})."
        )
    else:
        lines.append("No loss is forecast: every surface fit is refused, see the guards.")
    held = group.held_out
    best = None if held is None else main_forecast(held.forecasts)
    if held is not None and best is not None and best.error is not None:
        lines.append(
            f"Back-test: the budget {flops(held.budget)}, forecast from the {held.n_budgets} "
            f"smaller ones, {best.loss:.4f} {span(best.loss_interval, '.4f')} against "
            f"{held.loss:.4f} measured: {100 * best.error:+.2f} % ({best.method})."
        )
    n_left = len(group.runs.exclusions)
    n_warned = sum(finding.level != "note" for finding in group.findings)
    noise = "" if group.noise is None else f" seed noise {group.noise.sd:.4f} nats per token;"
    lines.append(
        f"{len(group.runs)} runs, {len(group.runs.budgets)} budgets;{noise} {n_left} rows left "
        f"out; {n_warned} warnings or refusals."
    )
    return lines


def main_forecast(forecasts: Sequence[Forecast]) -> Forecast | None:
    """Return the forecast that counts: the first surface that is at no limit, else the line."""
    usable = [f for f in forecasts if f.loss is not None]
    clean = [f for f in usable if f.loss_interval is not None and not f.note]
    return next(iter([*clean, *reversed(usable)]), None)


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
    note += (
        "C = 6ND holds exactly."
        if group.cost.is_exact
        else f"C is not 6ND: C = 6ND x {group.cost.factor:.4g} N^{group.cost.slope:+.4f} over "
        f"these runs (worst {100 * group.cost.worst:.1f} %), and the surfaces follow it."
    )
    return Table(
        title="Estimators side by side",
        header=("method", "a", "90 %", "b", "90 %", "runs", "status"),
        rows=tuple(rows),
        note=note,
    )


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


def forecast_table(group: GroupAnalysis) -> Table | None:
    """Return the forecasts of the largest budget beside the truth."""
    held = group.held_out
    if held is None:
        return None
    rows = [
        (
            f.method,
            "–" if f.loss is None else f"{f.loss:.4f}",
            span(f.loss_interval, ".4f"),
            f"{held.loss:.4f}",
            "–" if f.error is None else f"{100 * f.error:+.2f} %",
            "–" if f.run_errors is None else f"{100 * f.run_errors[1]:.2f} %",
            "–" if f.run_errors is None else f"{100 * f.run_errors[2]:.2f} %",
            f.note or "–",
        )
        for f in held.forecasts
    ]
    sizes = ""
    if held.params is not None and held.params_forecast is not None:
        sizes = (
            f" Optimal size there: forecast {count(held.params_forecast)}, measured "
            f"{count(held.params)} ({100 * (held.params_forecast / held.params - 1):+.0f} %)."
        )
    return Table(
        title=f"Forecast of the budget {flops(held.budget)} from the {held.n_budgets} smaller ones",
        header=(
            "method", "forecast", "90 %", "truth", "error", "mean |error| of its runs", "worst",
            "note",
        ),
        rows=tuple(rows),
        note="Truth is the minimum of the budget's own parabola; its runs took no part in the "
        f"fits. Lowest run {held.lowest_run:.4f}.{sizes}",
    )  # fmt: skip


def steps_table(group: GroupAnalysis) -> Table | None:
    """Return the exponents as small budgets leave."""
    if not group.steps:
        return None

    def cell(value: float | None, form: str) -> str:
        return "–" if value is None else f"{value:{form}}"

    return Table(
        title="Without the smallest budgets",
        header=("smallest budget kept", "left out", "a, Approach 2", "a, Approach 3", "E"),
        rows=tuple(
            (
                flops(step.smallest),
                str(step.n_dropped),
                cell(step.a_isoflop, ".4f"),
                cell(step.a_surface, ".4f"),
                cell(step.E, ".4g"),
            )
            for step in group.steps
        ),
    )


def shape_table(group: GroupAnalysis) -> Table | None:
    """Return loss over its expectation by d_model / n_layers, where shapes vary."""
    runs = group.runs
    aspect = runs.d_model / runs.n_layers
    left = group.shape_residuals()
    keep = np.isfinite(aspect) & np.isfinite(left)
    if len(np.unique(aspect[keep])) < 3:
        return None
    u = np.log2(aspect[keep])
    u -= u.mean()
    slope = float(u @ left[keep] / (u @ u))
    rest = left[keep] - left[keep].mean() - slope * u
    error = float(np.sqrt(rest @ rest / max(1, len(u) - 2) / (u @ u)))
    edges = np.unique(np.quantile(aspect[keep], [0.0, 0.25, 0.5, 0.75, 1.0]))
    rows = []
    for low, high in pairwise(edges):
        within = keep & (aspect >= low) & ((aspect < high) | (high == edges[-1]))
        if within.any():
            share = left[within]
            depths = runs.n_layers[within]
            rows.append(
                (
                    f"{low:.3g} to {high:.3g}",
                    str(int(within.sum())),
                    f"{depths.min():g} to {depths.max():g}",
                    f"{share.mean():+.2f} %",
                    f"{share.std(ddof=1):.2f} %" if len(share) > 1 else "–",
                )
            )
    return Table(
        title="Width against depth at equal FLOPs",
        header=("d_model / n_layers", "runs", "layers", "loss over its expectation", "sd"),
        rows=tuple(rows),
        note=f"Each doubling of d_model / n_layers moves the loss by {slope:+.2f} ± {error:.2f} % "
        "(one standard error) at the same N and C.",
    )


def count_table(group: GroupAnalysis) -> Table | None:
    """Return the exponents under every parameter count of the records."""
    if not group.counts:
        return None

    def cell(value: float | None) -> str:
        return "refused" if value is None else f"{value:.4f}"

    return Table(
        title="The same runs under other parameter counts",
        header=("N counts", "a, Approach 2", "a, Approach 3"),
        rows=tuple((c.params, cell(c.a_isoflop), cell(c.a_surface)) for c in group.counts),
        note="Never compare exponents of different counts.",
    )


def exclusion_table(analysis: Analysis) -> Table:
    """Return every row that entered no fit; empty where all did."""
    listed = dict.fromkeys(
        (item.run_id, item.reason)
        for runs in (analysis.runs, *(group.runs for group in analysis.groups))
        for item in runs.exclusions
    )
    return Table(title="Left out", header=("run", "reason"), rows=tuple(listed))


def group_tables(group: GroupAnalysis) -> list[Table]:
    """Return a group's tables in reading order."""
    tables = (
        estimator_table(group),
        curve_table(group),
        forecast_table(group),
        constants_table(group),
        surface_table(group),
        steps_table(group),
        shape_table(group),
        count_table(group),
    )
    return [table for table in tables if table is not None]
