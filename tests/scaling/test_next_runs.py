"""What the report says about running more."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llmtrain.scaling.analysis import analyze
from llmtrain.scaling.check_tables import next_table
from llmtrain.scaling.config import AnalyzeConfig
from llmtrain.scaling.load import load_runs


@pytest.mark.parametrize(("sd", "rule"), [(1e-5, "stop, the forecast"), (0.02, "go on until")])
def test_the_report_says_stop_once_the_forecast_is_sharp(
    planted_sweep: Callable[..., Path],
    analyze_config: Callable[..., AnalyzeConfig],
    sd: float,
    rule: str,
) -> None:
    group = analyze(analyze_config(), load_runs(planted_sweep(sd=sd))).groups[0]
    table = next_table(group)
    assert table is not None
    assert f"Stopping rule: {rule}" in table.note
