"""One look for all figures: small type, no clutter, colours that survive colour blindness."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from llmtrain.spec.disk import write_whole

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
"""Okabe and Ito's palette."""
BLACK, GREY = "#000000", "#666666"
METHOD_COLOURS = {
    "approach1_hull": GREEN,
    "approach2": BLUE,
    "approach3": RED,
    "projection": ORANGE,
}
WIDTH = 7.0
UNDATED = {"svg": {"Date": None}, "png": {"Software": None}}
RC: Any = {
    "font.size": 8.5,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "figure.dpi": 100,
    "savefig.dpi": 170,
    "svg.hashsalt": "llmtrain",
}


def new_figure(columns: int, height: float, *, width: float = WIDTH) -> tuple[Figure, list[Axes]]:
    """Return a figure with a row of `columns` axes, in the house style (call within `styled`)."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False)
    return figure, list(axes[0])


def styled() -> Any:
    """Return the context in which figures are made and saved."""
    return mpl.rc_context(RC)


def budget_colours(n: int) -> list[str]:
    """Return `n` colours from dark to light, the lightest still readable on white."""
    scale = mpl.colormaps["viridis"]
    return [to_hex(scale(0.88 * i / max(1, n - 1))) for i in range(n)]


def count_label(value: float) -> str:
    """Return 1.5M, 70B or 1.4T for a count."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def flops_label(value: float) -> str:
    """Return 2.2×10^11 as mathtext for FLOPs."""
    mantissa, exponent = f"{value:.1e}".split("e")
    mantissa = mantissa.removesuffix(".0")
    power = f"10^{{{int(exponent)}}}"
    return f"${power}$" if mantissa == "1" else f"${mantissa}\\times {power}$"


def log_axis(axis: Any, label: str, *, counts: bool) -> None:
    """Make an axis logarithmic, with ticks that read as counts where `counts`."""
    axis.axes.set_xscale("log") if axis.axis_name == "x" else axis.axes.set_yscale("log")
    axis.set_label_text(label)
    if not counts:
        return
    low, high = sorted(axis.get_view_interval())
    decades = high / low if low > 0 else 10.0
    subs = (1.0, 2.0, 5.0) if decades < 60 else (1.0, 3.0) if decades < 800 else (1.0,)
    axis.set_major_locator(LogLocator(base=10.0, subs=subs, numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda value, _: count_label(value)))
    axis.set_minor_formatter(NullFormatter())


def legend_below(figure: Figure, axis: Axes, title: str | None, columns: int) -> None:
    """Put the legend of `axis` under the figure, in at most `columns` columns."""
    handles, names = axis.get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        title=title,
        title_fontsize=7.5,
        loc="outside lower center",
        ncols=min(columns, len(names)),
        handletextpad=0.3,
        columnspacing=1.3,
    )


def drawn(figure: Figure, form: str) -> bytes:
    """Return the figure as a file of the `form` svg or png, the same bytes for the same figure."""
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format=form, metadata=UNDATED[form])
    return buffer.getvalue()


def save(figure: Figure, stem: Path) -> Sequence[Path]:
    """Write `stem`.svg and `stem`.png, laid out once; return both paths."""
    svg, png = stem.with_suffix(".svg"), stem.with_suffix(".png")
    write_whole(svg, drawn(figure, "svg"))
    figure.set_layout_engine("none")
    write_whole(png, drawn(figure, "png"))
    return svg, png
