"""The head of a report as one picture: its verdict over some of its figures."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from llmtrain.scaling.plot.style import BLUE, styled

WIDTH, DPI = 10.0, 84
LETTERS, LINE_HEIGHT = 150, 0.19
"""Letters of a line of text, and its height in inches."""


def draw_row(figures: Sequence[Path], lines: Sequence[str], path: Path) -> None:
    """Write a PNG with `lines` as points above the PNGs `figures` side by side."""
    images = [imread(figure) for figure in figures]
    ratios = [image.shape[1] / image.shape[0] for image in images]
    points = ["\n    ".join(textwrap.wrap(line, LETTERS)) for line in lines]
    text = "\n".join(f"•  {point}" for point in points)
    head = LINE_HEIGHT * (text.count("\n") + 2)
    height = head + WIDTH / sum(ratios)
    with styled():
        figure = Figure(figsize=(WIDTH, height), facecolor="white")
        FigureCanvasAgg(figure)
        top = 1.0 - 0.5 * LINE_HEIGHT / height
        figure.text(0.012, top, text, va="top", linespacing=1.45, fontsize=8.5)
        bar = figure.add_axes((0.0, 1.0 - head / height, 0.004, head / height))
        bar.set_facecolor(BLUE)
        left = 0.0
        for image, ratio in zip(images, ratios, strict=True):
            own = ratio / sum(ratios)
            axes = figure.add_axes((left, 0.0, own, 1.0 - head / height))
            axes.imshow(image, interpolation="lanczos", aspect="auto")
            left += own
        for axes in figure.axes:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(visible=False)
            for spine in axes.spines.values():
                spine.set_visible(False)
        figure.savefig(path, dpi=DPI, metadata={"Software": None})
