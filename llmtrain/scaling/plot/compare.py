"""Two sweeps: how much less compute the second needs."""

import numpy as np
from matplotlib.figure import Figure

from llmtrain.scaling.plot.style import BLUE, GREY, log_axis, new_figure
from llmtrain.scaling.results import Analysis


def multiplier(analysis: Analysis) -> Figure | None:
    """Draw the compute multiplier against this sweep's FLOPs, with 90 % intervals."""
    found = [item for item in analysis.multipliers if np.isfinite(item.value)]
    if not found:
        return None
    figure, (axis,) = new_figure(1, 3.4, width=4.6)
    axis.axhline(1.0, color=GREY, lw=0.8)
    for item in found:
        if item.interval is not None:
            axis.plot([item.flops] * 2, [item.interval.low, item.interval.high], color=BLUE, lw=1.4)
    x, y = np.array([(item.flops, item.value) for item in found]).T
    axis.plot(x, y, "o", ms=4.5, color=BLUE, mec="white", mew=0.5)
    log_axis(axis.xaxis, "FLOPs of this sweep", counts=False)
    axis.set_ylabel("the other's FLOPs over these")
    return figure
