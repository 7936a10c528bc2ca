"""What the figures draw is what was fitted."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmtrain.scaling.analysis import analyze
from llmtrain.scaling.config import AnalyzeConfig
from llmtrain.scaling.envelope import EnvelopeFit
from llmtrain.scaling.load import load_runs
from llmtrain.scaling.plot.curves import loss_label, params_label
from llmtrain.scaling.plot.envelope import envelope
from llmtrain.scaling.results import GroupAnalysis
from llmtrain.scaling.wording import FLOPS_WORDS, PARAMS_WORDS, counted
from llmtrain.spec.flops import CONVENTIONS, ParamGroups


@pytest.fixture(scope="module")
def group(
    planted_sweep: Callable[..., Path], analyze_config: Callable[..., AnalyzeConfig]
) -> GroupAnalysis:
    return analyze(analyze_config(bootstrap=50), load_runs(planted_sweep())).groups[0]


def test_the_envelope_shows_the_points_that_approach_1_is_fitted_to(group: GroupAnalysis) -> None:
    hull = group.accepted("approach1_hull")
    assert isinstance(hull, EnvelopeFit)
    figure = envelope(group)
    assert figure is not None
    (drawn,) = (
        line for line in figure.axes[0].lines if str(line.get_label()).startswith("convex hull")
    )
    C, loss = np.asarray(drawn.get_xdata()), np.asarray(drawn.get_ydata())
    assert len(C) == len(hull.rows) >= 3
    runs = set(zip(group.runs.budget, group.runs.loss, strict=True))
    assert all(
        any(np.isclose(c, r[0]) and x == r[1] for r in runs) for c, x in zip(C, loss, strict=True)
    )
    fitted = np.polyfit(np.log(C), np.log(loss), 1)  # falling and convex, as a lower hull is
    assert fitted[0] < 0
    assert (np.diff(np.diff(np.log(loss)) / np.diff(np.log(C))) > 0).all()


def test_axes_name_the_conventions_of_the_records(group: GroupAnalysis) -> None:
    assert params_label(group) == "parameters N (head counted, input embedding not)"
    assert loss_label(group) == "validation loss (nats per token)"


def test_every_convention_has_its_words() -> None:
    groups = ParamGroups(blocks=1, head=1, input_embedding=1, positions=0, vectors=0)
    assert set(PARAMS_WORDS) == set(groups.counts())
    assert set(FLOPS_WORDS) == set(CONVENTIONS)
    assert counted("total", "chinchilla") == "N: all parameters; C: Chinchilla's appendix F"
    assert counted("mine", "undeclared") == "N: mine; C: undeclared"
