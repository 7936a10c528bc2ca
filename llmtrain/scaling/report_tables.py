"""The tables of a report, in reading order."""

from llmtrain.scaling.bracket_table import bracket_table
from llmtrain.scaling.check_tables import (
    bias_table,
    forecast_table,
    held_model_table,
    influence_table,
    sensitivity_table,
    shape_table,
    steps_table,
)
from llmtrain.scaling.checklist import checklist_table
from llmtrain.scaling.fit_tables import (
    constants_table,
    curve_table,
    estimator_table,
    farseer_table,
    interaction_table,
    surface_table,
    variation_table,
)
from llmtrain.scaling.next_tables import demand_table, next_table, trunk_table
from llmtrain.scaling.results import Analysis, GroupAnalysis
from llmtrain.scaling.wording import Table


def exclusion_table(analysis: Analysis) -> Table:
    """Return every row that entered no fit; empty where all did."""
    listed = dict.fromkeys(
        (item.run_id, item.reason)
        for runs in (analysis.runs, *(group.runs for group in analysis.groups))
        for item in runs.exclusions
    )
    return Table(title="Left out", header=("run", "reason"), rows=tuple(listed))


def group_tables(group: GroupAnalysis) -> list[Table]:
    """Return a group's tables in reading order."""
    tables = (
        estimator_table(group),
        curve_table(group),
        forecast_table(group),
        held_model_table(group),
        constants_table(group),
        surface_table(group),
        interaction_table(group),
        farseer_table(group),
        steps_table(group),
        shape_table(group),
        variation_table(group),
        bias_table(group),
        influence_table(group),
        sensitivity_table(group),
        bracket_table(group.rates),
        next_table(group),
        trunk_table(group),
        demand_table(group),
        checklist_table(group),
    )
    return [table for table in tables if table is not None]
