"""The figures of a report, in reading order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from llmtrain.scaling.plot import checks, curves, envelope
from llmtrain.scaling.plot.compare import multiplier
from llmtrain.scaling.plot.style import save, styled
from llmtrain.scaling.results import Analysis, GroupAnalysis

DRAWN = (
    (
        "isoflop",
        "IsoFLOP curves. Each colour is one training budget; dots are runs, lines the "
        "parabola fitted to them, stars its minimum. Dotted parabolas are left out of the law.",
        curves.isoflop_curves,
    ),
    (
        "optimum",
        "Optimal model size and training tokens against compute, with 90 % bands. The solid line "
        "is the verdict's; stars are the minima of the IsoFLOP curves. Right of the dotted line "
        "all is extrapolation.",
        curves.optimum,
    ),
    (
        "envelope",
        "Loss against compute: the runs at their end, those on the convex hull that Approach 1 is "
        "fitted to, and the least loss the fitted surface expects, with its 90 % band. Grey lines: "
        "the loss along training, smoothed, where it is logged (the training loss; the validation "
        "loss of runs that repeat their text).",
        envelope.envelope,
    ),
    (
        "backtest",
        "Left: the largest budget's least loss, forecast from the smaller budgets only. Right: the "
        "exponent as the smallest budgets leave.",
        checks.backtest,
    ),
    (
        "residuals",
        "What the loss surface leaves over, against parameters and tokens. A law that holds leaves "
        "no pattern.",
        checks.residuals,
    ),
    (
        "surface",
        "The fitted loss surface (contours, in its unit), the runs coloured by what it leaves "
        "over, and the compute-optimal line.",
        checks.surface_map,
    ),
    (
        "profile",
        "Where alpha and beta may lie: regions of 50, 90 and 99 % by profile likelihood "
        "(squares of ln L; E, A and B refitted at every point).",
        checks.profile_contours,
    ),
    (
        "shapes",
        "Width against depth at equal FLOPs: what N and D leave over against the aspect ratio.",
        checks.shapes,
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnFigure:
    """A saved figure."""

    name: str
    caption: str
    svg: Path
    png: Path


def draw_figures(group: GroupAnalysis, folder: Path, prefix: str) -> Sequence[DrawnFigure]:
    """Draw what the group has and save each figure as SVG and PNG under `folder`."""
    drawn = []
    for name, caption, draw in DRAWN:
        with styled():
            figure = draw(group)
        drawn += _saved(figure, name, caption, folder / f"{prefix}{name}")
    return drawn


def draw_comparison(analysis: Analysis, folder: Path) -> Sequence[DrawnFigure]:
    """Draw the compute multiplier over another sweep, where there is one."""
    caption = (
        "How many times this sweep's FLOPs the other needs for the same loss, with 90 % intervals; "
        "the last point is the target."
    )
    with styled():
        figure = multiplier(analysis)
    return _saved(figure, "multiplier", caption, folder / "multiplier")


def _saved(figure: Figure | None, name: str, caption: str, stem: Path) -> list[DrawnFigure]:
    if figure is None:
        return []
    svg, png = save(figure, stem)
    return [DrawnFigure(name=name, caption=caption, svg=svg, png=png)]
