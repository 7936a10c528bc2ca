"""Loss against compute: the runs, their training curves, the envelope and the fitted optimum."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llmtrain.scaling.bootstrap import LawDraws
from llmtrain.scaling.envelope import EnvelopeFit
from llmtrain.scaling.parametric import ParametricFit
from llmtrain.scaling.plot.curves import loss_label
from llmtrain.scaling.plot.style import METHOD_COLOURS, RED, log_axis, new_figure
from llmtrain.scaling.results import GroupAnalysis
from llmtrain.scaling.runs import Runs
from llmtrain.scaling.training_curves import TrainingCurves, smooth


def envelope(group: GroupAnalysis) -> Figure | None:
    """Draw loss against compute with the lower hull and the fitted compute-optimal loss."""
    figure, (axis,) = new_figure(1, 3.3, width=4.6)
    runs = group.runs
    if group.training is not None:
        _draw_training(axis, group.training, runs)
    axis.plot(
        runs.flops, runs.loss, "o", ms=3, color="#8c8c8c", mec="none", label="runs, at their end"
    )
    _draw_hull(axis, group)
    _draw_minima(axis, group)
    _draw_surface(axis, group)
    log_axis(axis.xaxis, "training FLOPs C", counts=False)
    axis.set_ylabel(loss_label(group))
    axis.legend(loc="lower left")
    return figure


def _draw_hull(axis: Axes, group: GroupAnalysis) -> None:
    """Draw the points that Approach 1 is fitted to."""
    hull = group.accepted("approach1_hull")
    if isinstance(hull, EnvelopeFit):
        colour = METHOD_COLOURS["approach1_hull"]
        label = f"convex hull, {len(hull.rows)} points"
        axis.plot(
            hull.flops, hull.loss, "o-", ms=5.5, mfc="none", color=colour, lw=1.0, label=label
        )


def _draw_minima(axis: Axes, group: GroupAnalysis) -> None:
    minima = sorted((c.budget, c.params.loss) for c in group.curves if c.used)
    if minima:
        axis.plot(
            *zip(*minima, strict=True),
            "*",
            ms=9,
            color=METHOD_COLOURS["approach2"],
            mec="black",
            mew=0.6,
            label="minima of the parabolas",
            zorder=5,
        )


def _draw_surface(axis: Axes, group: GroupAnalysis) -> None:
    """Draw the least loss that the recommended surface expects, with its 90 % band."""
    surface = group.surface
    if surface is None or not isinstance(surface.fit, ParametricFit):
        return
    colour = METHOD_COLOURS.get(surface.name, RED)
    C = np.geomspace(group.runs.flops.min(), group.target_flops, 80)
    loss = group.cost.loss_opt(surface.fit.law, C)
    axis.plot(C, loss, color=colour, label=f"optimum of {surface.title}")
    if isinstance(surface.draws, LawDraws) and len(surface.draws.E) >= 20:
        rows = np.stack([group.cost.loss_opt(surface.draws, c) for c in C], axis=1)
        low, high = np.quantile(rows, [0.05, 0.95], axis=0)
        axis.fill_between(C, low, high, color=colour, alpha=0.15, lw=0)


def _draw_training(axis: Axes, training: TrainingCurves, runs: Runs) -> None:
    """Draw every run's smoothed curve, as far as it comes near the runs' final losses."""
    low, high = float(runs.loss.min()), float(runs.loss.max())
    ceiling = high + 0.25 * (high - low)
    for name in np.unique(training.run_id):
        own = training.run_id == name
        C = training.flops[own]
        loss = np.exp(smooth(np.log(C), np.log(training.loss[own])))
        near = loss < ceiling
        thin = max(1, int(near.sum()) // 60)
        label = "along training, smoothed" if name == training.run_id[0] else None
        axis.plot(C[near][::thin], loss[near][::thin], color="#cfcfcf", lw=0.5, label=label)
