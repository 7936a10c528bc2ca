"""The cells of a sweep before it runs: which sizes get how many tokens at each budget."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmtrain.scaling.plot.style import (
    GREY,
    budget_colours,
    drawn,
    flops_label,
    legend_below,
    log_axis,
    new_figure,
    styled,
)
from llmtrain.spec.disk import write_whole

RATIOS = (5.0, 20.0, 80.0)
"""Tokens per parameter drawn as guides."""


def draw_plan(cells: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw planned cells (n_params, n_tokens, budget, seconds) and write `path`, .svg or .png.

    Left: tokens against parameters, a colour per budget. Right: the time of each cell, where known.
    """
    budgets = sorted({cell["budget"] or cell["flops"] for cell in cells})
    timed = all(cell["seconds"] is not None for cell in cells)
    with styled():
        figure, axes = new_figure(2 if timed else 1, 3.4, width=7.0 if timed else 4.2)
        for budget, colour in zip(budgets, budget_colours(len(budgets)), strict=True):
            own = [cell for cell in cells if (cell["budget"] or cell["flops"]) == budget]
            n = [cell["n_params"] for cell in own]
            label = flops_label(budget)
            look: dict[str, Any] = {
                "ms": 5,
                "color": colour,
                "mec": "white",
                "mew": 0.5,
                "label": label,
            }
            axes[0].plot(n, [cell["n_tokens"] for cell in own], "o", **look)
            if timed:
                axes[1].plot(n, [cell["seconds"] for cell in own], "o", **look)
        params = np.array(sorted({float(cell["n_params"]) for cell in cells}))
        for ratio in RATIOS:
            axes[0].plot(params, ratio * params, color=GREY, lw=0.6, ls=":", zorder=0.5)
            axes[0].annotate(
                f"{ratio:g} per parameter", (params[-1], ratio * params[-1]), fontsize=6, color=GREY
            )
        log_axis(axes[0].yaxis, "training tokens D", counts=True)
        for axis in axes:
            log_axis(axis.xaxis, "parameters N (head counted, input embedding not)", counts=True)
        if timed:
            log_axis(axes[1].yaxis, "expected seconds", counts=True)
        legend_below(figure, axes[0], "training FLOPs", 6)
    write_whole(path, drawn(figure, path.suffix[1:]))
