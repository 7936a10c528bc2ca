"""How a sweep and an analysis end: the verdict in five lines, and the next command to type."""

import shlex
from pathlib import Path

from edge import compose
from next_step import analyze_next

from llmtrain.scaling.analysis import analyze
from llmtrain.scaling.config import AnalyzeConfig
from llmtrain.scaling.load import load_runs
from llmtrain.scaling.results import Analysis, GroupAnalysis
from llmtrain.scaling.tables import TableOptions
from llmtrain.scaling.training_curves import load_curves
from llmtrain.scaling.verdict import verdict
from llmtrain.scaling.wording import flops
from llmtrain.spec.build import build
from llmtrain.spec.errors import LlmtrainError
from llmtrain.spec.expense import expense_of


def fit_source(config: AnalyzeConfig, source: Path) -> Analysis:
    """Return the analysis of a folder or table of runs. Raises what loading and fitting refuse."""
    table = TableOptions(
        columns=config.columns or {},
        params_convention=config.params_convention,
        flops_convention=config.flops_convention,
    )
    runs = load_runs(source, table)
    training = load_curves(source, runs) if source.is_dir() else None
    expense = expense_of(source, runs.records, config.bill) if runs.records else None
    return analyze(config, runs, training, expense)


def verdict_lines(group: GroupAnalysis) -> list[str]:
    """Return the verdict as a list of at most five points."""
    return [f"- {line}" for line in verdict(group)]


def sweep_ending(directory: Path) -> list[str]:
    """Return the verdict of a finished sweep's folder, as analyze.py fits it, and what to type.

    A law that is refused is one line with the reason.
    """
    config = build(
        AnalyzeConfig, compose("analyze", ["publish=disabled"]) | {"runs": str(directory)}
    )
    try:
        groups = fit_source(config, directory).groups
        lines = [line for group in groups for line in verdict_lines(group)]
    except LlmtrainError as error:
        lines = [f"- No law yet: {error}"]
    return [*lines, analyze_next(directory)]


def analysis_ending(analysis: Analysis, law: Path) -> list[str]:
    """Return each group's verdict, and the command that asks the law for the next model."""
    lines: list[str] = []
    for group in analysis.groups:
        if len(analysis.groups) > 1:
            lines.append(f"{group.group}:")
        lines += verdict_lines(group)
    known = [group for group in analysis.groups if group.main is not None]
    if known:
        asked = [
            "python",
            "scripts/predict.py",
            f"flops={flops(known[0].target_flops)}",
            f"law={law}",
        ]
        if len(analysis.groups) > 1:
            asked.append(f"group={known[0].group}")
        lines.append(f"next: {shlex.join(asked)}")
    return lines
