"""The wandb workspace and report of a sweep, built without a server.

Every metric named here is logged by the runs (`training/summary.py`) or by the analysis
(`scaling/publish.py`); a test holds it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llmtrain.spec.check import check, check_name
from llmtrain.spec.errors import ConfigError

FLOPS, TOKENS = "flops", "tokens"
PARAMS = "params/no_input_embedding"
BUDGET = "budget/flops"
CHART = "wandb/lineseries/v0"  # what wandb.plot.line_series draws with
INSTALL = "pip install -e '.[dashboard]'"


@dataclass(frozen=True, kw_only=True, slots=True)
class DashboardConfig:
    """What scripts/dashboard.py builds."""

    project: str
    """wandb project of the runs."""
    group: str
    """wandb group: the sweep's name."""
    entity: str | None
    """wandb user or team; null takes the account's default."""
    runs: str | None
    """The sweep's folder, for its law and for colours by budget; null: runs/GROUP."""
    out: str | None
    """Folder for the JSON; null: RUNS/dashboard."""
    publish: Literal["auto", "online", "offline"]
    """Save to wandb's server; auto: where a key is. The JSON is written either way."""

    def __post_init__(self) -> None:
        """Refuse names that wandb would not take."""
        check(self.group != "", "group is empty: name the sweep, as in group=demo")
        for field in ("project", "group"):
            check_name(field, getattr(self, field))


@dataclass(frozen=True, kw_only=True, slots=True)
class Boards:
    """A workspace and a report of wandb-workspaces."""

    workspace: Any
    report: Any

    def documents(self) -> dict[str, str]:
        """Return the JSON of both, by file name."""
        return {
            f"{name}.json": board._to_model().model_dump_json(
                by_alias=True, exclude_none=True, indent=1
            )
            for name, board in (("workspace", self.workspace), ("report", self.report))
        }

    def save(self) -> list[str]:
        """Save both to wandb's server and return their addresses. Raises ConfigError."""
        try:
            for board in (self.workspace, self.report):
                board.save()
            return [str(self.workspace.url), str(self.report.url)]
        except Exception as error:
            first = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            raise ConfigError(
                f"wandb took no dashboard: {first}; check entity=, the login and the network"
            ) from error


def build_boards(
    config: DashboardConfig, *, online: bool, verdict: Sequence[str], colours: Mapping[str, str]
) -> Boards:
    """Return the boards of a sweep; `colours` maps wandb ids to the colour of their budget.

    Only with `online` is the server asked for anything. Raises ConfigError where wandb-workspaces
    is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as wr  # noqa: PLC0415 - an extra
        import wandb_workspaces.workspaces as ws  # noqa: PLC0415
        from wandb_workspaces import expr  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(f"the dashboard needs wandb-workspaces: {INSTALL}") from error
    entity = config.entity or "ENTITY"
    of_group = expr.Metric("Group") == config.group
    trained = expr.And(of_group, expr.Metric("JobType") == "train")
    analysed = expr.And(of_group, expr.Metric("JobType") == "analysis")
    sections = panel_sections(wr)
    workspace = ws.Workspace(
        entity=entity,
        project=config.project,
        name=f"Sweep {config.group}",
        sections=[
            ws.Section(name=name, panels=panels, is_open=True)
            for name, panels in (sections | {"Analysis": analysis_panels(wr)}).items()
        ],
        settings=ws.WorkspaceSettings(max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(of_group),
            order=[expr.Ordering(expr.Config(BUDGET)), expr.Ordering(expr.Summary("val_loss"))],
            run_settings={name: ws.RunSettings(color=c) for name, c in colours.items()},
            pinned_columns=["summary:val_loss", f"config:{BUDGET}.value"],
        ),
    )
    # Named, a project is looked up on the server at once; unnamed, it is the report's own.
    home = {"entity": entity, "project": config.project} if online else {}
    runs = wr.Runset(
        **home,
        name="runs",
        filters=trained,
        run_settings={name: wr.RunSettings(color=c) for name, c in colours.items()},
    )
    analysis = wr.Runset(**home, name="analysis", filters=analysed)
    blocks = [wr.H1("Verdict"), wr.UnorderedList(list(verdict))]
    blocks.append(wr.PanelGrid(runsets=[analysis], panels=analysis_panels(wr)))
    for name, panels in sections.items():
        blocks += [wr.H2(name), wr.PanelGrid(runsets=[runs], panels=panels)]
    command = f"python scripts/analyze.py runs=wandb:{entity}/{config.project}/{config.group}"
    blocks += [wr.H2("The same fit again"), wr.CodeBlock(code=command)]
    report = wr.Report(
        project=config.project,
        entity=entity,
        title=f"Scaling law of {config.group}",
        description=verdict[0] if verdict else "",
        blocks=blocks,
        width="fluid",
    )
    return Boards(workspace=workspace, report=report)


def panel_sections(wr: Any) -> dict[str, list[Any]]:
    """Return the panels over training runs, by section; `wr` is wandb_workspaces.reports.v2."""

    def line(y: str, x: str, **options: Any) -> Any:
        return wr.LinePlot(
            title=f"{y} against {x}", x=x, y=[y], log_x=x == FLOPS, max_runs_to_show=100, **options
        )

    by_budget = {"groupby": wr.Config(BUDGET), "groupby_aggfunc": "min"}
    return {
        "Loss": [
            line("val/loss", FLOPS),
            line("val/loss", TOKENS),
            line("train/loss", FLOPS),
            wr.LinePlot(
                title="lowest loss of each budget", x=TOKENS, y=["train/loss"], **by_budget
            ),
        ],
        "IsoFLOP": [
            wr.ScatterPlot(
                title="final loss against N, by budget",
                x=wr.SummaryMetric(PARAMS),
                y=wr.SummaryMetric("val_loss"),
                z=wr.Config(BUDGET),
                log_x=True,
                log_z=True,
                running_ymin=True,
            ),
            wr.ScatterPlot(
                title="final loss against D, by budget",
                x=wr.SummaryMetric("n_tokens"),
                y=wr.SummaryMetric("val_loss"),
                z=wr.Config(BUDGET),
                log_x=True,
                log_z=True,
                running_ymin=True,
            ),
        ],
        "Schedule": [line("train/lr", TOKENS), line("train/seq_len", TOKENS)],
        "Health": [line("train/grad_norm", TOKENS, log_y=True)],
        "Speed and energy": [
            line("train/tokens_per_second", TOKENS),
            line("train/mfu", TOKENS),
            line("train/memory_gb", TOKENS),
            wr.ScatterPlot(
                title="joules against FLOPs, measured or estimated as energy_source says",
                x=wr.SummaryMetric(FLOPS),
                y=wr.SummaryMetric("energy_j"),
                log_x=True,
                log_y=True,
            ),
        ],
        "Width, depth, learning rate": [
            wr.ParallelCoordinatesPlot(
                columns=[
                    wr.ParallelCoordinatesPlotColumn(metric=metric, log=log)
                    for metric, log in (
                        (wr.Config(BUDGET), True),
                        (wr.Config("model/d_model"), True),
                        (wr.Config("model/n_layers"), False),
                        (wr.Config("plan/hyper/peak_lr"), True),
                        (wr.SummaryMetric("val_loss"), False),
                    )
                ]
            )
        ],
    }


def analysis_panels(wr: Any) -> list[Any]:
    """Return the panels over the analysis run: points with minima, figures, tables."""
    chart = wr.CustomChart(
        query={"summaryTable": {"tableKey": "isoflop_table"}},
        chart_name=CHART,
        chart_fields={"step": "step", "lineKey": "lineKey", "lineVal": "lineVal"},
        chart_strings={"title": "IsoFLOP points and minima", "xname": "log10 N"},
    )
    figures = wr.MediaBrowser(media_keys=["figures/isoflop", "figures/optimum"], num_columns=1)
    tables = [
        wr.WeavePanelSummaryTable(table_name=name)
        for name in ("estimators", "isoflop_minima", "isoflop_points")
    ]
    return [chart, figures, *tables]
