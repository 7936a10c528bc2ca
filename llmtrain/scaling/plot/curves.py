"""What the law is read from: IsoFLOP curves, the envelope, and the optimum against compute."""

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llmtrain.scaling.bootstrap import LawDraws, PowerDraws, power_of
from llmtrain.scaling.envelope import EnvelopeFit
from llmtrain.scaling.estimate import Estimate
from llmtrain.scaling.isoflop import Curve, IsoflopFit
from llmtrain.scaling.law import Array
from llmtrain.scaling.parametric import ParametricFit
from llmtrain.scaling.plot.style import (
    BLACK,
    GREY,
    METHOD_COLOURS,
    budget_colours,
    flops_label,
    legend_below,
    log_axis,
    new_figure,
)
from llmtrain.scaling.results import GroupAnalysis
from llmtrain.scaling.texts import loss_unit
from llmtrain.scaling.wording import PARAMS_WORDS


def params_label(group: GroupAnalysis) -> str:
    """Return the axis label of N, with its convention."""
    words = PARAMS_WORDS.get(group.runs.conventions.params)
    return f"parameters N ({words})" if words else "parameters N"


def loss_label(group: GroupAnalysis) -> str:
    """Return the axis label of the loss: records hold the validation loss, a table may not."""
    unit = loss_unit(group.runs.conventions.texts.metric)
    return f"{'validation' if group.runs.records else 'final'} loss ({unit})"


def isoflop_curves(group: GroupAnalysis) -> Figure | None:
    """Draw loss against N and against D for every budget, with parabolas and their minima."""
    if len(group.curves) == 0:
        return None
    figure, axes = new_figure(2, 3.7)
    colours = budget_colours(len(group.curves))
    for axis, pick, label in zip(
        axes, ("params", "tokens"), (params_label(group), "training tokens D"), strict=True
    ):
        for curve, colour in zip(group.curves, colours, strict=True):
            _draw_curve(axis, group, curve, pick, colour)
        log_axis(axis.xaxis, label, counts=True)
    axes[0].set_ylabel(loss_label(group))
    _crop(axes, group)
    legend_below(figure, axes[0], "training FLOPs of the curve; stars are minima", 6)
    return figure


def _draw_curve(axis: Axes, group: GroupAnalysis, curve: Curve, pick: str, colour: str) -> None:
    rows = group.runs.budget == curve.budget
    x = getattr(group.runs, pick)[rows]
    axis.plot(
        x,
        group.runs.loss[rows],
        "o",
        ms=3.6,
        color=colour,
        alpha=0.9,
        mec="white",
        mew=0.4,
        label=flops_label(curve.budget),
    )
    vertex = getattr(curve, pick)
    if not np.isfinite(vertex.coefficients[0]):
        return
    grid = np.geomspace(x.min(), x.max(), 120)
    height = np.polyval(vertex.coefficients, np.log(grid) - vertex.centre)
    axis.plot(grid, height, color=colour, lw=1.2, ls="-" if curve.used else ":")
    if curve.used:
        axis.plot(
            vertex.x, vertex.loss, marker="*", ms=11, color=colour, mec="black", mew=0.7, zorder=5
        )


def _crop(axes: list[Axes], group: GroupAnalysis) -> None:
    """Keep one far outlier from flattening every curve: cut at twice the spread of the others."""
    loss = group.runs.loss[np.isfinite(group.runs.budget)]
    low, middle, high = loss.min(), np.quantile(loss, 0.9), loss.max()
    top = high if high - low < 2.0 * (middle - low) else low + 1.5 * (middle - low)
    for axis in axes:
        axis.set_ylim(low - 0.04 * (top - low), top + 0.04 * (top - low))


def optimum(group: GroupAnalysis) -> Figure | None:
    """Draw N_opt and D_opt against C with 90 % bands, by the verdict and each accepted method."""
    main = group.main
    named = [e for e in group.estimates if e.name in METHOD_COLOURS or e is main]
    shown = [e for e in named if e.status == "accepted"]
    if not shown:
        return None
    figure, axes = new_figure(2, 3.7)
    low = float(group.runs.flops.min())
    C = np.geomspace(low, group.target_flops, 60)
    for axis, which in zip(axes, ("params", "tokens"), strict=True):
        for estimate in shown:
            _draw_law(axis, group, estimate, which, C, is_main=estimate is main)
        _draw_minima(axis, group, which)
        axis.axvline(group.runs.flops.max(), color=GREY, lw=0.8, ls=":")
        log_axis(axis.xaxis, "training FLOPs C", counts=False)
    axes[0].set_title("Optimal model size")
    axes[1].set_title("Optimal training tokens")
    log_axis(axes[0].yaxis, "optimal parameters N", counts=True)
    log_axis(axes[1].yaxis, "optimal training tokens D", counts=True)
    legend_below(figure, axes[0], None, 2)
    axes[1].text(
        group.runs.flops.max(),
        0.02,
        " largest run",
        transform=axes[1].get_xaxis_transform(),
        fontsize=7,
        color=GREY,
        va="bottom",
    )
    return figure


def _draw_minima(axis: Axes, group: GroupAnalysis, which: str) -> None:
    fit = group.accepted("approach2")
    if not isinstance(fit, IsoflopFit):
        return
    x = [curve.budget for curve in fit.used]
    y = [getattr(curve, which).x for curve in fit.used]
    axis.plot(x, y, "*", ms=9, color=METHOD_COLOURS["approach2"], mec="black", mew=0.6, zorder=5)


def _draw_law(
    axis: Axes, group: GroupAnalysis, estimate: Estimate, which: str, C: Array, *, is_main: bool
) -> None:
    colour = METHOD_COLOURS.get(estimate.name, BLACK)  # of Approach 2's rows, only the verdict's
    line, draws = _line_and_draws(group, estimate, which, C)
    axis.plot(
        C,
        line,
        color=colour,
        ls="-" if is_main else "--",
        label=f"{estimate.title} (a = {estimate.a:.3f}, b = {estimate.b:.3f})",
    )
    if len(draws) >= 20:
        lower, upper = np.quantile(draws, [0.05, 0.95], axis=0)
        axis.fill_between(C, lower, upper, color=colour, alpha=0.13, lw=0)


def _line_and_draws(
    group: GroupAnalysis, estimate: Estimate, which: str, C: Array
) -> tuple[Array, Array]:
    """Return the law on C (c,) and its draws (b, c)."""
    fit, draws = estimate.fit, estimate.draws
    if isinstance(fit, ParametricFit) and isinstance(draws, LawDraws):
        value: Callable[[Array], Array] = lambda n: (  # noqa: E731 - two lines, used twice
            n if which == "params" else group.cost.tokens(C, n)
        )
        rows = np.stack([draws.n_opt(c, group.cost) for c in C], axis=1)
        return value(group.cost.n_opt(fit.law, C)), value(rows)
    assert isinstance(fit, EnvelopeFit | IsoflopFit)
    assert isinstance(draws, PowerDraws)
    law = fit.params_law if which == "params" else fit.tokens_law
    scale = draws.params_coefficient if which == "params" else draws.tokens_coefficient
    power = draws.a if which == "params" else draws.b
    return law.at(C), power_of(scale[:, None], power[:, None], C)
