"""Which estimate the verdict is about, where the grid itself misleads Approach 2."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llmtrain.scaling.analysis import analyze
from llmtrain.scaling.config import AnalyzeConfig
from llmtrain.scaling.law import LossLaw
from llmtrain.scaling.load import load_runs
from llmtrain.scaling.plot.curves import optimum
from llmtrain.scaling.results import GroupAnalysis
from llmtrain.scaling.verdict import target, verdict

LAW = LossLaw(E=1.69, A=406.4, B=410.7, alpha=0.465, beta=0.155)
TRUE_A = 0.25
CORRECTED = "Approach 2, grid bias removed"
Drifting = Callable[..., GroupAnalysis]


@pytest.fixture
def drifting(tmp_path: Path, analyze_config: Callable[..., AnalyzeConfig]) -> Drifting:
    """Analyse five budgets of 15 cells, the centre drifting from the optimum to `drift` D*."""

    def study(reach: float, sd: float, drift: float = 3.0, diverged: bool = False) -> GroupAnalysis:
        C = np.repeat([1e17, 1e18, 1e19, 1e20, 1e21], 15)
        D = np.asarray(LAW.d_opt(C)) * np.repeat(np.geomspace(1.0, drift, 5), 15)
        D = D * np.tile(np.geomspace(1 / reach, reach, 15), 5)
        N = C / 6 / D
        loss = LAW.loss(N, D) * np.exp(sd * np.random.default_rng(0).standard_normal(75))
        loss[-1] *= 1.2 if diverged else 1.0
        cells = zip(N, D, C, loss, strict=True)
        lines = [",".join(repr(float(value)) for value in row) for row in cells]
        path = tmp_path / "runs.csv"
        path.write_text("params,tokens,flops,loss\n" + "\n".join(lines), encoding="utf-8")
        return analyze(analyze_config(bootstrap=100), load_runs(path)).groups[0]

    return study


@pytest.mark.parametrize("reach", [4.0, 8.0])
def test_a_drifting_grid_hands_the_verdict_to_the_corrected_row(
    reach: float, drifting: Drifting
) -> None:
    group = drifting(reach, 2e-4)
    assert group.main is group.estimate("approach2_corrected")
    assert group.main.a == pytest.approx(TRUE_A, abs=0.006)
    bounds, plain = group.main.a_interval, group.estimate("approach2")
    assert bounds is not None
    assert bounds.low < TRUE_A < bounds.high
    assert plain.a == pytest.approx(TRUE_A - 0.022, abs=0.006)
    assert plain.a_interval is not None
    assert plain.a_interval.high < TRUE_A
    first = verdict(group)[0]
    assert f"by {CORRECTED}" in first
    assert f"The parabolas as they are say {plain.a:.3f}" in first
    aim = target(group)
    assert aim is not None
    assert aim.params_from == CORRECTED
    assert aim.params == pytest.approx(float(LAW.n_opt(aim.flops)), rel=0.05)


def test_a_centred_grid_and_a_bias_within_the_noise_leave_the_verdict_to_approach_2(
    drifting: Drifting,
) -> None:
    for group in (drifting(4.0, 2e-4, drift=1.0), drifting(4.0, 0.02)):
        assert group.bias is not None
        assert not group.grid_misleads
        assert group.main is not group.estimate("approach2_corrected")
        assert "The parabolas as they are" not in verdict(group)[0]


def test_where_the_corrected_row_has_outliers_the_surface_speaks(drifting: Drifting) -> None:
    group = drifting(4.0, 2e-4, diverged=True)
    assert group.has("approach2_robust")
    assert group.grid_misleads
    assert group.main is group.surface
    assert group.main is not None
    assert group.main.a == pytest.approx(TRUE_A, abs=0.006)


def test_two_seeds_of_a_sweep_are_one_family_under_the_verdict(
    planted_sweep: Callable[..., Path], analyze_config: Callable[..., AnalyzeConfig]
) -> None:
    one, two = (
        analyze(analyze_config(), load_runs(planted_sweep(seeds=seeds, sd=0.004))).groups[0]
        for seeds in ((0,), (0, 1))
    )
    assert two.main is two.estimate("approach2")
    assert one.main is not None
    assert two.main is not None
    assert two.main.n_runs == 2 * one.main.n_runs == len(two.runs)
    assert [(c.n_runs, c.n_sizes) for c in two.curves] == [(18, 9)] * 4
    assert two.main.width < one.main.width
    aim = target(two)
    assert aim is not None
    law = LossLaw(E=0.9, A=60.0, B=90.0, alpha=0.38, beta=0.33)
    assert aim.params == pytest.approx(float(two.cost.n_opt(law, aim.flops)), rel=0.1)
    assert aim.params_interval is not None
    assert aim.params_interval.low < aim.params < aim.params_interval.high


def test_no_law_gives_the_reason_of_the_row_without_outliers(drifting: Drifting) -> None:
    group = drifting(4.0, 2e-4, diverged=True)
    assert group.estimate("approach2").status == "accepted"
    refused = tuple(
        e if e.name == "approach2" else replace(e, status="refused", reason=f"{e.name} cannot")
        for e in group.estimates
    )
    lines = verdict(replace(group, estimates=refused))
    assert lines[0] == "No law: Approaches 1, 2 and 3 all refuse these runs."
    told = [line.partition(": ")[2] for line in lines[1:]]
    assert told == ["approach1_hull cannot", "approach2_robust cannot", "approach3 cannot"]


def test_the_solid_line_of_the_figure_is_the_verdict(drifting: Drifting) -> None:
    group = drifting(4.0, 2e-4)
    assert group.main is group.estimate("approach2_corrected")
    figure = optimum(group)
    assert figure is not None
    for axis, exponent in zip(figure.axes, (group.main.a, group.main.b), strict=True):
        laws = [line for line in axis.lines if str(line.get_label()).endswith(")")]
        (solid,) = [line for line in laws if line.get_linestyle() == "-"]
        slope = np.polyfit(np.log(solid.get_xdata()), np.log(solid.get_ydata()), 1)[0]
        assert slope == pytest.approx(exponent, rel=1e-6)
        assert str(solid.get_label()).startswith(CORRECTED)
