"""What the law leaves over: residuals, the surface they lie on, back-tests, width against depth."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from llmtrain.scaling.bootstrap import LawDraws
from llmtrain.scaling.forecast import HeldOut
from llmtrain.scaling.parametric import ParametricFit
from llmtrain.scaling.plot.curves import params_label
from llmtrain.scaling.plot.style import (
    BLUE,
    GREY,
    METHOD_COLOURS,
    RED,
    budget_colours,
    flops_label,
    legend_below,
    log_axis,
    new_figure,
)
from llmtrain.scaling.profile import profile_map
from llmtrain.scaling.results import GroupAnalysis
from llmtrain.scaling.texts import loss_unit

CHI2_TWO = {"50 %": 1.386, "90 %": 4.605, "99 %": 9.210}
"""Points of chi-squared with two degrees of freedom."""


def residuals(group: GroupAnalysis) -> Figure | None:
    """Draw the surface's residuals of ln L, in percent, against N and against D."""
    surface = group.surface
    if surface is None or not isinstance(surface.fit, ParametricFit):
        return None
    runs = group.runs
    left = 100.0 * surface.fit.residuals(runs.params, runs.tokens, runs.loss)
    figure, axes = new_figure(2, 3.4)
    colours = budget_colours(len(group.curves))
    loose = ~np.isfinite(runs.budget)
    for axis, x in zip(axes, (runs.params, runs.tokens), strict=True):
        axis.axhline(0.0, color=GREY, lw=0.8)
        axis.plot(x[loose], left[loose], "o", ms=3.2, color="#9a9a9a", mec="white", mew=0.3)
        for curve, colour in zip(group.curves, colours, strict=True):
            rows = runs.budget == curve.budget
            axis.plot(
                x[rows],
                left[rows],
                "o",
                ms=3.8,
                color=colour,
                mec="white",
                mew=0.4,
                label=flops_label(curve.budget),
            )
    log_axis(axes[0].xaxis, params_label(group), counts=True)
    log_axis(axes[1].xaxis, "training tokens D", counts=True)
    axes[0].set_ylabel("loss over fit - 1 (%)")
    axes[1].sharey(axes[0])
    if group.curves:
        legend_below(
            figure,
            axes[0],
            "training FLOPs; grey: on no curve" if loose.any() else "training FLOPs",
            6,
        )
    return figure


def surface_map(group: GroupAnalysis) -> Figure | None:
    """Draw the fitted loss over (N, D), the runs coloured by residual, and the optimum."""
    surface = group.surface
    if surface is None or not isinstance(surface.fit, ParametricFit):
        return None
    runs, law = group.runs, surface.fit.law
    figure, (axis,) = new_figure(1, 3.8, width=4.8)
    N = np.geomspace(runs.params.min() / 1.5, runs.params.max() * 1.5, 120)
    D = np.geomspace(runs.tokens.min() / 1.5, runs.tokens.max() * 1.5, 120)
    lines = axis.contour(
        N, D, law.loss(N[None, :], D[:, None]), levels=12, colors="#8a8a8a", linewidths=0.7
    )
    axis.clabel(lines, fmt="%.2f", fontsize=6.5)
    left = 100.0 * surface.fit.residuals(runs.params, runs.tokens, runs.loss)
    reach = max(1e-6, float(np.quantile(np.abs(left), 0.98)))
    dots = axis.scatter(
        runs.params,
        runs.tokens,
        c=left,
        cmap="PuOr",
        s=20,
        edgecolors="#333333",
        linewidths=0.4,
        norm=TwoSlopeNorm(0.0, -reach, reach),
        zorder=3,
    )
    C = np.geomspace(runs.flops.min(), runs.flops.max(), 50)
    n = group.cost.n_opt(law, C)
    axis.plot(
        n, group.cost.tokens(C, n), color=METHOD_COLOURS.get(surface.name, RED), label="optimum"
    )
    axis.set_xlim(N[0], N[-1])
    axis.set_ylim(D[0], D[-1])
    log_axis(axis.xaxis, params_label(group), counts=True)
    log_axis(axis.yaxis, "training tokens D", counts=True)
    axis.grid(visible=False)
    figure.colorbar(dots, ax=axis, label="loss over fit - 1 (%)", shrink=0.85, extend="both")
    axis.legend(loc="upper left")
    return figure


def backtest(group: GroupAnalysis) -> Figure | None:
    """Draw the held-out budget with its forecasts, and the exponent as small budgets leave."""
    held = group.held_out
    if held is None:
        return None
    figure, axes = new_figure(2, 3.2)
    unit = loss_unit(group.runs.conventions.texts.metric)
    _draw_forecasts(axes[0], held, unit)
    second = axes[1]
    for name, values in (
        ("approach2", [step.a_isoflop for step in group.steps]),
        ("approach3", [step.a_surface for step in group.steps]),
    ):
        pairs = [
            (step.smallest, a) for step, a in zip(group.steps, values, strict=True) if a is not None
        ]
        if pairs:
            second.plot(
                *zip(*pairs, strict=True),
                "o-",
                ms=4,
                color=METHOD_COLOURS[name],
                label=group.estimate(name).title,
            )
    main = group.main
    if main is not None and main.a_interval is not None:
        second.axhspan(
            main.a_interval.low,
            main.a_interval.high,
            color=GREY,
            alpha=0.12,
            lw=0,
            label="90 % interval, all budgets",
        )
    log_axis(second.xaxis, "smallest budget kept (FLOPs)", counts=False)
    second.set_ylabel("exponent a of N_opt")
    second.set_title("Without the small budgets")
    second.legend(loc="best")
    return figure


def _draw_forecasts(axis: Axes, held: HeldOut, unit: str) -> None:
    """Draw each forecast with its interval on a line of its own, beside the truth."""
    made = [(forecast, forecast.loss) for forecast in held.forecasts if forecast.loss is not None]
    colours = {"Approach 3": RED, "projection": METHOD_COLOURS["projection"]}
    for row, (forecast, loss) in enumerate(made):
        colour = colours.get(forecast.method, BLUE)
        if forecast.loss_interval is not None:
            ends = (forecast.loss_interval.low, forecast.loss_interval.high)
            axis.plot(ends, (row, row), color=colour, lw=2.2, solid_capstyle="butt")
        axis.plot(loss, row, "o", ms=6, color=colour, mec="white", mew=0.6)
        axis.annotate(
            f"{forecast.method}: {100 * (forecast.error or 0.0):+.2f} %",
            (loss, row),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=7.5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
        )
    axis.axvline(held.loss, color="black", lw=1.0, zorder=0.5, label=f"measured, {held.loss:.4f}")
    axis.set_ylim(len(made) - 0.5, -0.9)
    axis.margins(x=0.4)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.set_xlabel(f"least loss of the budget ({unit})")
    axis.set_title(f"Budget {flops_label(held.budget)}, forecast without it")
    axis.legend(loc="lower right")


def profile_contours(group: GroupAnalysis) -> Figure | None:
    """Draw where alpha and beta may lie: contours of the Gaussian profile likelihood."""
    found = group.estimate("log_squares")
    fit, draws = found.fit, found.draws
    if found.reason or not isinstance(fit, ParametricFit) or not isinstance(draws, LawDraws):
        return None
    if fit.options.constrained:
        return None
    # Five standard deviations hold the 99 % region, and leave room around it.
    reach = (5.0 * float(np.std(draws.alpha)), 5.0 * float(np.std(draws.beta)))
    columns = (group.runs.params, group.runs.tokens, group.runs.loss)
    alpha, beta, ratio = profile_map(fit, columns, reach)
    if min(reach) <= 0.0 or not (ratio < CHI2_TWO["50 %"]).any():
        return None
    figure, (axis,) = new_figure(1, 3.6, width=4.6)
    filled = axis.contourf(
        alpha,
        beta,
        ratio,
        levels=[0.0, *CHI2_TWO.values()],
        colors=["#2a78b5", "#7fb2d9", "#cfe2f1"],
    )
    axis.contour(
        alpha, beta, ratio, levels=list(CHI2_TWO.values()), colors="#1b4f79", linewidths=0.7
    )
    axis.plot(fit.law.alpha, fit.law.beta, "+", color="white", ms=8, mew=1.6)
    ends = np.array([alpha[0], alpha[-1]])
    axis.plot(
        ends,
        ends * fit.law.beta / fit.law.alpha,
        ls="--",
        color=GREY,
        lw=1.0,
        label=f"a = {fit.law.a:.3f} at C = 6ND",
    )
    rows, columns_in = (np.flatnonzero((ratio <= CHI2_TWO["99 %"]).any(axis=k)) for k in (1, 0))
    last = len(alpha) - 1
    axis.set_xlim(alpha[max(0, columns_in[0] - 1)], alpha[min(last, columns_in[-1] + 1)])
    axis.set_ylim(beta[max(0, rows[0] - 1)], beta[min(last, rows[-1] + 1)])
    bar = figure.colorbar(filled, ax=axis, shrink=0.8, ticks=list(CHI2_TWO.values()))
    bar.set_ticklabels(list(CHI2_TWO))
    axis.set_xlabel("alpha")
    axis.set_ylabel("beta")
    axis.legend(loc="upper left")
    return figure


def shapes(group: GroupAnalysis) -> Figure | None:
    """Draw loss over the IsoFLOP parabola against d_model / n_layers, where shapes vary."""
    runs = group.runs
    aspect = runs.d_model / runs.n_layers
    left = group.shape_residuals()
    keep = np.isfinite(aspect) & np.isfinite(left)
    if len(np.unique(aspect[keep])) < 3:
        return None
    figure, (axis,) = new_figure(1, 3.0, width=4.8)
    depths = np.unique(runs.n_layers[keep])
    for depth, colour in zip(depths, budget_colours(len(depths)), strict=True):
        rows = keep & (runs.n_layers == depth)
        axis.plot(
            aspect[rows],
            left[rows],
            "o",
            ms=4.5,
            color=colour,
            mec="white",
            mew=0.4,
            label=f"{depth:g} layers",
        )
    axis.axhline(0.0, color=GREY, lw=0.8)
    log_axis(axis.xaxis, "d_model / n_layers", counts=True)
    axis.set_ylabel("loss over its expectation (%)")
    axis.legend(loc="best", ncols=2)
    return figure
