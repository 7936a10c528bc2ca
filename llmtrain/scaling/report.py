"""The report of an analysis: law.json, report.md, report.html and the figures."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmtrain.scaling.expense_table import expense_table
from llmtrain.scaling.fit_tables import multiplier_table
from llmtrain.scaling.law_file import law_document
from llmtrain.scaling.page import (
    figure_html,
    finding_list,
    heading,
    render_page,
    table_html,
    verdict_list,
)
from llmtrain.scaling.plot.figures import DrawnFigure, draw_comparison, draw_figures
from llmtrain.scaling.report_tables import exclusion_table, group_tables
from llmtrain.scaling.results import Analysis, GroupAnalysis
from llmtrain.scaling.runs_file import RUNS_FILE, runs_table
from llmtrain.scaling.verdict import verdict
from llmtrain.scaling.wording import Table
from llmtrain.spec.disk import make_folder, write_whole

FIGURES = "figures"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportFiles:
    """What was written."""

    law: Path
    markdown: Path
    html: Path
    figures: Path
    runs: Path | None
    """The runs as a table; None where they came as one."""


def write_report(analysis: Analysis, out: Path, overrides: Sequence[str]) -> ReportFiles:
    """Write the report into `out` (made if needed); earlier files of the same name are replaced."""
    command = " ".join(["python scripts/analyze.py", *map(shlex.quote, overrides)])
    folder = out / FIGURES
    make_folder(folder)
    files = ReportFiles(
        law=out / "law.json",
        markdown=out / "report.md",
        html=out / "report.html",
        figures=folder,
        runs=out / RUNS_FILE if analysis.runs.records else None,
    )
    if files.runs is not None:
        write_whole(files.runs, runs_table(analysis.runs))
    document = law_document(analysis, command)
    write_whole(files.law, json.dumps(document, indent=1, allow_nan=False) + "\n")
    drawn = [
        draw_figures(group, folder, _prefix(group, len(analysis.groups)))
        for group in analysis.groups
    ]
    compared = draw_comparison(analysis, folder)
    write_whole(files.markdown, _markdown(analysis, drawn, compared, command))
    write_whole(files.html, _html(analysis, drawn, compared, command))
    return files


def _prefix(group: GroupAnalysis, n_groups: int) -> str:
    """Return what a group's figures are named by; empty for an only group."""
    return "" if n_groups == 1 else re.sub(r"[^A-Za-z0-9._-]+", "_", group.group)[:80] + "-"


def _title(analysis: Analysis) -> str:
    return f"Scaling law of {Path(analysis.runs.source).name}"


def _where(analysis: Analysis) -> str:
    runs = analysis.runs
    return f"{runs.source}, {len(runs)} runs, sha256 {runs.sha256[:16]}"


def _html(
    analysis: Analysis,
    drawn: Sequence[Sequence[DrawnFigure]],
    compared: Sequence[DrawnFigure],
    command: str,
) -> str:
    body = []
    for group, figures in zip(analysis.groups, drawn, strict=True):
        if len(analysis.groups) > 1:
            body.append(heading(group.group))
        body.append(verdict_list(verdict(group)))
        body += [figure_html(f.name, f.svg, f.caption) for f in figures]
        body += [table_html(table) for table in group_tables(group)]
        body.append("<h3>Guards</h3>")
        body.append(finding_list([(f.level, f"{f.code}: {f.message}") for f in group.findings]))
    multipliers = multiplier_table(analysis)
    if multipliers is not None:
        body += [figure_html(f.name, f.svg, f.caption) for f in compared]
        body.append(table_html(multipliers))
    if (cost := expense_table(analysis.expense)) is not None:
        body.append(table_html(cost))
    body.append(heading("How this was made"))
    body.append(table_html(_exclusions(analysis)))
    body.append(table_html(Table(title="Command", header=("",), rows=((command,),))))
    return render_page(_title(analysis), _where(analysis), body)


def _exclusions(analysis: Analysis) -> Table:
    table = exclusion_table(analysis)
    if table.rows:
        return table
    return Table(title=table.title, header=table.header, rows=(("–", "nothing was left out"),))


def _markdown(
    analysis: Analysis,
    drawn: Sequence[Sequence[DrawnFigure]],
    compared: Sequence[DrawnFigure],
    command: str,
) -> str:
    parts = [f"# {_md(_title(analysis))}", _md(_where(analysis))]
    for group, figures in zip(analysis.groups, drawn, strict=True):
        if len(analysis.groups) > 1:
            parts.append(f"## {_md(group.group)}")
        parts.append("\n".join(f"- {_md(line)}" for line in verdict(group)))
        parts += [_md_figure(f) for f in figures]
        parts += [_md_table(table) for table in group_tables(group)]
        lines = [f"- **{f.level}** {f.code}: {_md(f.message)}" for f in group.findings]
        parts.append("### Guards\n\n" + ("\n".join(lines) or "No guard has anything to say."))
    multipliers = multiplier_table(analysis)
    if multipliers is not None:
        parts += [_md_figure(f) for f in compared]
        parts.append(_md_table(multipliers))
    if (cost := expense_table(analysis.expense)) is not None:
        parts.append(_md_table(cost))
    parts.append(_md_table(_exclusions(analysis)))
    parts.append(f"### Command\n\n    {' '.join(command.splitlines())}")
    return "\n\n".join(parts) + "\n"


def _md_figure(figure: DrawnFigure) -> str:
    return f"![{figure.name}]({FIGURES}/{figure.png.name})\n\n*{figure.caption}*"


def _md(text: str) -> str:
    """Escape what Markdown or HTML inside it would act on."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_$\[\]|])", r"\\\1", " ".join(text.splitlines()))


def _md_table(table: Table) -> str:
    head = "| " + " | ".join(_md(name) for name in table.header) + " |"
    rule = "|" + "---|" * len(table.header)
    rows = ["| " + " | ".join(_md(cell) for cell in row) + " |" for row in table.rows]
    note = f"\n\n{_md(table.note)}" if table.note else ""
    return f"### {_md(table.title)}\n\n" + "\n".join([head, rule, *rows]) + note
