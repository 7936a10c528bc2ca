"""Tables of what the fits are worth: back-tests, bias, influence, shapes, next runs."""

from itertools import pairwise

import numpy as np

from llmtrain.scaling.estimate import METHODS
from llmtrain.scaling.results import GroupAnalysis
from llmtrain.scaling.wording import Table, count, flops, span


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


def held_model_table(group: GroupAnalysis) -> Table | None:
    """Return the forecasts of the largest model's runs."""
    held = group.held_model
    if held is None:
        return None

    def cell(value: float | None, form: str) -> str:
        return "–" if value is None else f"{100 * value:{form}} %"

    return Table(
        title=f"Forecast of the largest model, N = {count(held.params)}, from {held.n_models} "
        "smaller sizes",
        header=("method", "runs", "mean error", "mean |error|", "worst", "note"),
        rows=tuple(
            (
                own.method,
                str(held.n_runs),
                cell(own.mean, "+.2f"),
                cell(own.mean_absolute, ".2f"),
                cell(own.largest, ".2f"),
                own.note or "–",
            )
            for own in held.forecasts
        ),
        note="Relative errors of the loss at the model's own token counts; its runs took no part.",
    )


def sensitivity_table(group: GroupAnalysis) -> Table | None:
    """Return where other searches end."""
    found = group.sensitivity
    if found is None or group.surface is None:
        return None
    rows = [
        (
            f"search from {own.law}",
            f"{own.objective:.6g}" if np.isfinite(own.objective) else "–",
            "the same optimum" if own.agrees else "another stationary point",
        )
        for own in found.published
    ]
    rows.append(
        (
            f"{found.random_starts} random searches",
            "–",
            f"{found.random_agreeing} reach the same optimum",
        )
    )
    lower = "none ended lower" if found.better is None else f"one ended at {found.better:.6g}"
    return Table(
        title=f"Other starts for {group.surface.title}",
        header=("what", "objective at the start", "result"),
        rows=tuple(rows),
        note=f"Of these searches {lower}.",
    )


def steps_table(group: GroupAnalysis) -> Table | None:
    """Return exponents, floor and forecast at the target as small budgets leave."""
    if not group.steps:
        return None

    def cell(value: float | None, form: str) -> str:
        return "–" if value is None else f"{value:{form}}"

    return Table(
        title="Without the smallest budgets",
        header=(
            "smallest budget kept", "left out", "a, Approach 2", "a, Approach 3", "E",
            f"loss at {flops(group.target_flops)}",
        ),
        rows=tuple(
            (
                flops(step.smallest),
                str(step.n_dropped),
                cell(step.a_isoflop, ".4f"),
                cell(step.a_surface, ".4f"),
                cell(step.E, ".4g"),
                cell(step.loss_at_target, ".4f"),
            )
            for step in group.steps
        ),
    )  # fmt: skip


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


def bias_table(group: GroupAnalysis) -> Table | None:
    """Return what the grid alone does to Approach 2's vertices."""
    if group.bias is None:
        return None
    shifts = zip(group.bias.budgets, group.bias.params_shift, group.bias.tokens_shift, strict=True)
    return Table(
        title="Bias of the parabolas on this grid",
        header=("FLOPs", "N of the vertex over the optimum", "D of the vertex over the optimum"),
        rows=tuple(
            (flops(C), f"{100 * np.expm1(n):+.1f} %", f"{100 * np.expm1(d):+.1f} %")
            for C, n, d in shifts
        ),
        note="Parabolas fitted to the surface itself, without noise, at the very cells of the "
        f"runs. Expected error of a: {group.bias.exponent_shift:+.4f}.",
    )


def influence_table(group: GroupAnalysis) -> Table | None:
    """Return how a moves when runs, models, budgets or hull points leave."""
    if not group.left_out:
        return None
    rows = [
        (
            METHODS[item.method],
            item.kind,
            str(item.n_units),
            span(item.range_of_a, ".4f"),
            item.worst,
            f"{item.shift:+.4f}",
        )
        for item in group.left_out
    ]
    note = ""
    if group.profile is not None:
        bounds = span(group.profile.interval, ".4f")
        note = f"Gaussian profile likelihood of a at C = 6ND, squares of ln L, 90 %: {bounds}."
    return Table(
        title="Left out in turn: the exponent a",
        header=("method", "without one", "fits", "range of a", "moves it most", "by"),
        rows=tuple(rows),
        note=note,
    )
