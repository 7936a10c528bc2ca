"""The analysis is a wandb run of its group, and the dashboard names only what runs log."""

import dataclasses
import json
import re
import subprocess
import sys
import warnings

import dashboard
import numpy as np
import pytest
from test_mirror import inspect

from llmtrain.board.dashboard import DashboardConfig, build_boards
from llmtrain.board.identity import wandb_id
from llmtrain.board.offline import offline_files, read_offline
from llmtrain.corpus.shards import open_corpus
from llmtrain.scaling.analysis import analyze
from llmtrain.scaling.load import load_runs
from llmtrain.scaling.publish import publish
from llmtrain.scaling.report import write_report
from llmtrain.scaling.verdict import verdict
from llmtrain.spec.bill import PLAIN
from llmtrain.spec.errors import ConfigError
from llmtrain.spec.rundir import run_directory
from llmtrain.training.loop import train

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its models are of pydantic's older style
    reason = "the extra `dashboard` is not installed"
    workspaces = pytest.importorskip("wandb_workspaces.workspaces", reason=reason)
    reports = pytest.importorskip("wandb_workspaces.reports.v2", reason=reason)


@pytest.fixture(scope="module")
def analysed(analyze_config, planted_sweep, tmp_path_factory):
    """An analysis of planted runs, with its report's files."""
    config = analyze_config(publish="offline", bootstrap=50)
    analysis = analyze(config, load_runs(planted_sweep()))
    return analysis, write_report(analysis, tmp_path_factory.mktemp("report"), [])


@pytest.fixture(scope="module")
def published(analysed):
    """The folder below which the analysis is logged offline, twice."""
    analysis, files = analysed
    warnings: list[str] = []
    for _ in range(2):  # the second takes the place of the first
        where = publish(analysis, files, warn=warnings.append)
    assert warnings == []
    assert where.startswith(str(files.law.parent))
    return files.law.parent


def test_an_analysis_is_a_run_of_its_group(analysed, published):
    analysis, files = analysed
    (path,) = offline_files(published)
    run = read_offline(path)
    (group,) = analysis.groups
    assert (run.group, run.job_type, run.state) == ("planted", "analysis", "finished")
    assert run.name == "analysis-planted"
    main = group.main
    assert run.summary["recommended/a"] == pytest.approx(main.a)
    assert run.summary["recommended/a_low"] == pytest.approx(main.a_interval.low)
    assert run.summary["approach3/b_high"] == pytest.approx(
        group.estimate("approach3").b_interval.high
    )
    assert run.summary["verdict"].startswith("N_opt grows as C^")
    assert run.summary["n_runs"] == 36
    assert run.summary["data_sha256"] == analysis.runs.sha256
    assert run.config["bootstrap"] == 50
    saved = path.parent / "files" / "law.json"
    assert saved.read_bytes() == files.law.read_bytes()
    kinds = {r["type"] for r in inspect(published)}
    assert "artifact" in kinds or "request" in kinds, kinds


def test_its_tables_hold_the_points_the_minima_and_the_estimators(analysed, published):
    (group,) = analysed[0].groups
    found = {
        path.name.partition(".")[0].rpartition("_")[0].rpartition("_")[0]: json.loads(
            path.read_text()
        )
        for path in published.glob("wandb/offline-run-*/files/media/table/*.table.json")
    }
    points = found["isoflop_points"]
    assert points["columns"][1:] == [
        "run_id", "budget", "params", "tokens", "flops", "loss", "seed"
    ]  # fmt: skip
    assert sorted(row[6] for row in points["data"]) == pytest.approx(sorted(group.runs.loss))
    minima = {row[1]: row[2] for row in found["isoflop_minima"]["data"]}
    assert minima == pytest.approx({c.budget: c.params.x for c in group.curves})
    methods = {row[1]: row[3] for row in found["estimators"]["data"]}
    assert methods == {e.title: e.a for e in group.estimates}
    chart = found["isoflop_table"]["data"]
    of_minima = [row for row in chart if row[1] == "minima"]
    used = [c for c in group.curves if c.used]
    assert [row[0] for row in of_minima] == pytest.approx([np.log10(c.params.x) for c in used])
    assert len(chart) == len(group.runs) + len(used)
    images = {p.name for p in published.glob("wandb/offline-run-*/files/media/images/figures/*")}
    assert {name.partition("_")[0] for name in images} >= {"isoflop", "optimum"}


def test_an_analysis_reaches_the_server_once(analysed, server):
    analysis, files = analysed
    found = server()
    warnings: list[str] = []
    online = dataclasses.replace(
        analysis, config=dataclasses.replace(analysis.config, publish="online")
    )
    for _ in range(2):
        publish(online, files, warn=warnings.append)
    assert warnings == []
    (run,) = found.runs.values()
    assert (run.state, run.job_type, run.group) == ("finished", "analysis", "planted")
    assert run.summary["recommended/a"] == pytest.approx(analysis.groups[0].main.a)
    assert [name for name, kind in found.artifacts if kind == "law"] == ["law-planted"] * 2
    assert found.unknown == []


@pytest.fixture(scope="module")
def logged(make, tiny_corpus_dir, tmp_path_factory, published):
    """Every key that a run and an analysis log, by kind."""
    root = tmp_path_factory.mktemp("logged")
    changes = {"tracking.wandb": "offline", "runtime.peak_tflops": 0.1, "runs_root": str(root)}
    config = make(
        changes | {"budget.flops": 1e9, "budget.n_tokens": None, "budget.tolerance": 0.05}
    )
    train(config, open_corpus(tiny_corpus_dir))
    (path,) = offline_files(run_directory(config))
    run = read_offline(path)
    found = [r["history"]["item"] for r in inspect(published) if r["type"] == "history"]
    return {
        "history": {key for row in run.rows for key in row},
        "summary": set(run.summary) | {key for row in run.rows for key in row},
        "config": set(run.config),
        "analysis": {key.partition(".")[0] for row in found for key in row},
    }


CONFIG = DashboardConfig(
    project="llmtrain", group="demo", entity=None, runs=None, out=None, publish="offline"
)


def boards():
    colours = {wandb_id("demo", "C1e16-w8d2-s0-x"): "#440154"}
    return build_boards(CONFIG, online=False, verdict=["N_opt grows as C^0.5"], colours=colours)


def accessors(value) -> set[tuple[str, str]]:
    """Return every metric that a board's JSON names, as (kind, key)."""
    found: set[tuple[str, str]] = set()
    if isinstance(value, list):
        return found.union(*map(accessors, value))
    if not isinstance(value, dict):
        return found
    for key, item in value.items():
        if key == "metrics":
            found |= {("history", name) for name in item}
        elif key in ("xAxis", "yAxis", "zAxis", "accessor") and ":" in item:
            kind, name = item.split(":", 1)
            found.add((kind, name.removesuffix(".value")))
        elif key == "xAxis" and item != "_step":
            found.add(("history", item))
        elif key == "groupBy":
            found.add(("config", item.removesuffix(".value")))
        elif key == "columnPinned":
            pairs = (name.split(":", 1) for name in item if not name.startswith("run:"))
            found |= {(kind, name.removesuffix(".value")) for kind, name in pairs}
        elif key == "mediaKeys":
            found |= {("analysis", name) for name in item}
        elif key == "key" and isinstance(item, dict) and item.get("section", "run") != "run":
            found.add((item["section"], item["name"]))
        else:
            found |= accessors(item)
    return found


@pytest.mark.parametrize("name", ["workspace", "report"])
def test_a_board_names_only_what_is_logged(logged, name):
    text = boards().documents()[f"{name}.json"]
    named = accessors(json.loads(text))
    assert len(named) > 15
    missing = {(kind, key) for kind, key in named if key not in logged[kind]}
    assert missing == set()
    tables = set(re.findall(r'"(isoflop_\w+|estimators)"', text))
    assert tables == {"isoflop_table", "isoflop_points", "isoflop_minima", "estimators"}
    assert tables - {"isoflop_table"} <= logged["analysis"]
    assert {"isoflop_table", "isoflop"} & logged["analysis"]


PROMISED = {
    ("history", "val/loss"), ("history", "flops"), ("history", "tokens"), ("history", "train/lr"),
    ("history", "train/seq_len"), ("history", "train/grad_norm"), ("history", "train/mfu"),
    ("history", "train/tokens_per_second"), ("summary", "energy_j"), ("summary", "val_loss"),
    ("summary", "params/no_input_embedding"), ("config", "budget/flops"),
    ("config", "model/d_model"), ("config", "model/n_layers"), ("config", "plan/hyper/peak_lr"),
}  # fmt: skip


def test_the_json_validates_with_wandb_workspaces_and_holds_what_is_promised():
    documents = boards().documents()
    view = workspaces.internal.View.model_validate_json(documents["workspace.json"])
    assert workspaces.Workspace._from_model(view).name == "Sweep demo"
    assert accessors(json.loads(documents["workspace.json"])) >= PROMISED
    report = reports.internal.ReportViewspec.model_validate_json(documents["report.json"])
    assert report.display_name == "Scaling law of demo"
    texts = re.findall(r'"text": "([^"]+)"', documents["report.json"])
    assert texts[:2] == ["Verdict", "N_opt grows as C^0.5"]


def test_the_script_writes_json_and_says_how_to_publish(root, analysed, tmp_path):
    (tmp_path / "runs/planted").mkdir(parents=True)
    (tmp_path / "runs/planted/report").symlink_to(analysed[1].law.parent)
    done = subprocess.run(
        [sys.executable, str(root / "scripts/dashboard.py"), "group=planted"],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "not published: run `wandb login`" in done.stdout
    report = (tmp_path / "runs/planted/dashboard/report.json").read_text()
    first = report.index('"Verdict"')
    for line in verdict(analysed[0].groups[0]):
        assert json.dumps(line, ensure_ascii=False)[1:-1] in report[first:]
    assert "36 runs, 4 budgets" in report
    assert "note:" not in done.stdout


def test_the_report_says_what_the_sweep_cost_and_that_it_is_an_estimate(planted_sweep):
    def estimated(record):
        return dataclasses.replace(record, energy_j=3.6e6, energy_source="estimated")

    folder = planted_sweep(change=estimated)
    for path in folder.glob("*/record.json"):
        path.with_name("config.json").write_text(
            json.dumps({"config": {"bill": dataclasses.asdict(PLAIN) | {"price_per_hour": 600.0}}})
        )
    records = dashboard.records_of(folder)
    assert len(records) == 36
    (line,) = dashboard.cost_of(folder, records)
    assert line.startswith("Cost of 36 finished runs: estimated 36 kWh, 17.1 kg CO2e (475 g/kWh")
    assert line.endswith("; 18.00 USD.")
    assert dashboard.cost_of(folder, []) == []


def test_a_law_that_holds_no_verdict_is_one_line(tmp_path):
    law = tmp_path / "law.json"
    for text in ("{", '{"groups": [{"group": "old"}]}'):
        law.write_text(text)
        with pytest.raises(ConfigError, match=r"holds no verdict .*run scripts/analyze\.py"):
            dashboard.verdict_of(law)


def test_a_group_without_a_folder_is_said(root, tmp_path):
    done = subprocess.run(
        [sys.executable, str(root / "scripts/dashboard.py"), "group=absent", "out=boards"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "note: no folder runs/absent here, so no law and no colours by budget" in done.stdout


def test_names_are_refused_before_anything_is_written():
    with pytest.raises(ConfigError, match="group is empty"):
        DashboardConfig(project="p", group="", entity=None, runs=None, out=None, publish="auto")
