"""Fit the scaling law of a sweep or of a table of runs, and write the report.

  python scripts/analyze.py runs=runs/NAME
  python scripts/analyze.py runs=FILE.csv            columns params, tokens, loss; flops, group, ...
  python scripts/analyze.py runs=FILE.csv 'columns={params: N, tokens: D}' params_convention=total
  python scripts/analyze.py runs=FILE.csv 'budgets=[1e18,1e19,1e20]' bootstrap=2000 out=DIR
  python scripts/analyze.py runs=wandb:ENTITY/PROJECT/GROUP      a team's runs, from wandb
  python scripts/analyze.py runs=FOLDER              of wandb's own offline-run-* folders
  python scripts/analyze.py runs=runs/B against=runs/A/report/law.json

Writes law.json, report.html, report.md and figures, and logs them to wandb (publish=online,
offline, disabled; auto is online where a key is). Every key stands in configs/analyze.yaml.
Exit codes: 0 a law was fitted, 2 bad input, 7 the runs identify no law.
"""

import dataclasses
import sys
from pathlib import Path

import key_help
from edge import compose, run_edge
from ending import analysis_ending, fit_source
from rich.console import Console
from screen import open_console, say
from tables import columns_of, print_columns, whole_width

from llmtrain.board.source import group_of, local_runs
from llmtrain.scaling.analysis import compare_with
from llmtrain.scaling.bracket_table import bracket_line, bracket_table
from llmtrain.scaling.check_tables import forecast_table
from llmtrain.scaling.config import AnalyzeConfig
from llmtrain.scaling.expense_table import expense_table
from llmtrain.scaling.fit_tables import estimator_table, multiplier_table
from llmtrain.scaling.law_file import read_side
from llmtrain.scaling.publish import publish
from llmtrain.scaling.report import ReportFiles, write_report
from llmtrain.scaling.results import Analysis
from llmtrain.scaling.wording import Table
from llmtrain.spec.build import build
from llmtrain.spec.errors import FitRefusedError
from llmtrain.spec.words import plural

SENTENCES = ("status", "note")  # columns whose texts are told below a table too narrow for them
NOTHING = ("accepted", "–")  # what such a text says where there is nothing to tell
GIVE_WAY = (
    *SENTENCES, "worst", "mean |error| of its runs", "source", "J per token", "kJ per run",
    "N", "excess, nats", "runs",
)  # fmt: skip
"""Columns that a terminal leaves out where they are too many for it, the first one first."""


def default_out(source: Path) -> Path:
    """Return where a report goes when nothing is said."""
    return source / "report" if source.is_dir() else Path("runs") / "analysis" / source.stem


def print_table(console: Console, table: Table) -> None:
    """Print a table, and below it what had no room: reasons as sentences, columns by name."""
    say(console, table.title, "italic")
    columns = columns_of(table.header, table.rows, n_left=len(table.header))
    hidden = print_columns(console, columns, GIVE_WAY)
    if names := [column.title for column in hidden if column.title not in SENTENCES]:
        whole = whole_width([column for column in columns if column.title not in SENTENCES])
        say(console, f"at {whole} columns also {', '.join(names)}; the report has all")
    for column in hidden:
        if column.title in SENTENCES:
            for row, text in zip(table.rows, column.texts, strict=True):
                if text not in NOTHING:
                    say(console, f"{row[0]}: {text}", indent="  ")


def print_analysis(console: Console, analysis: Analysis, files: ReportFiles) -> None:
    """Print estimators, forecast and warnings of each group, cost, and where the report is."""
    for group in analysis.groups:
        if len(analysis.groups) > 1:
            console.print(f"\n{group.group}", markup=False, style="bold")
        for table in (estimator_table(group), forecast_table(group), bracket_table(group.rates)):
            if table is not None:
                print_table(console, table)
        if group.rates is not None:
            say(console, bracket_line(group.rates))
        for finding in group.findings:
            if finding.level == "warning":
                say(console, f"warning ({finding.code}): {finding.message}")
    multipliers = multiplier_table(analysis)
    if multipliers is not None:
        print_table(console, multipliers)
    n_excluded = len(analysis.runs.exclusions)
    if n_excluded:
        say(console, f"{plural(n_excluded, 'run')} left out; the report gives each its reason")
    if (cost := expense_table(analysis.expense)) is not None:
        print_table(console, cost)
    console.print(f"report:  {files.html}", markup=False)
    console.print(f"figures: {files.figures}", markup=False)
    console.print(f"law:     {files.law}", markup=False)


def main(overrides: list[str]) -> None:
    """Load, fit, write, print; refuse last, so that what succeeded is on disk."""
    config = build(AnalyzeConfig, compose("analyze", overrides))
    team = group_of(config.runs)
    if team is not None:
        config = dataclasses.replace(config, entity=team[0], project=team[1])
    base = None if config.against is None else read_side(Path(config.against))
    source = local_runs(config.runs)
    analysis = fit_source(config, source)
    if base is not None:
        analysis = compare_with(analysis, base)
    out = default_out(source) if config.out is None else Path(config.out)
    files = write_report(analysis, out, overrides)
    where = publish(analysis, files, warn=lambda line: print(line, file=sys.stderr))
    console = open_console()
    print_analysis(console, analysis, files)
    if where:
        console.print(f"wandb:   {where}")
    for line in analysis_ending(analysis, files.law):
        say(console, line)
    if all(group.main is None for group in analysis.groups):
        raise FitRefusedError(f"no law: {analysis.refusals} (what succeeded is in {files.html})")


if __name__ == "__main__":
    if key_help.is_asked_for():
        __doc__ = f"{__doc__}\n{key_help.analyze_keys()}"
    run_edge(main)
