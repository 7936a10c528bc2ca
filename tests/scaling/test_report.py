"""From runs to the report: what is recommended, what is written, what is refused."""

import dataclasses
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from llmtrain.scaling.analysis import analyze
from llmtrain.scaling.any_law import find_law
from llmtrain.scaling.check_tables import shape_table
from llmtrain.scaling.checklist import checklist_table
from llmtrain.scaling.config import AnalyzeConfig, PredictConfig
from llmtrain.scaling.isoflop import IsoflopFit
from llmtrain.scaling.law import LossLaw
from llmtrain.scaling.law_file import law_document
from llmtrain.scaling.load import load_runs
from llmtrain.scaling.parametric import ParametricFit
from llmtrain.scaling.plot.curves import isoflop_curves
from llmtrain.scaling.plot.style import drawn, styled
from llmtrain.scaling.predict import predict
from llmtrain.scaling.report import ReportFiles, write_report
from llmtrain.scaling.report_tables import group_tables
from llmtrain.scaling.results import Analysis
from llmtrain.scaling.verdict import verdict
from llmtrain.scaling.wording import count, flops
from llmtrain.spec.errors import ConfigError, FitRefusedError
from llmtrain.spec.record import RunRecord, read_record, write_record

Ask = Callable[..., PredictConfig]
ROOT = Path(__file__).resolve().parents[2]
Config = Callable[..., AnalyzeConfig]
Sweep = Callable[..., Path]
PLANTED = LossLaw(E=0.9, A=60.0, B=90.0, alpha=0.38, beta=0.33)


@pytest.fixture(scope="module")
def planted(planted_sweep: Sweep, analyze_config: Config) -> Analysis:
    return analyze(analyze_config(), load_runs(planted_sweep(seeds=(0, 1))))


@pytest.fixture(scope="module")
def files(planted: Analysis, tmp_path_factory: pytest.TempPathFactory) -> ReportFiles:
    return write_report(planted, tmp_path_factory.mktemp("report") / "out", ["runs=planted"])


def test_a_planted_sweep_gives_its_law_by_every_method(planted: Analysis) -> None:
    (group,) = planted.groups
    true_a = float(group.cost.exponent(PLANTED.alpha, PLANTED.beta))
    surface, isoflop = group.accepted("approach3"), group.accepted("approach2")
    assert isinstance(surface, ParametricFit)
    assert isinstance(isoflop, IsoflopFit)
    assert surface.law.alpha == pytest.approx(PLANTED.alpha, abs=0.01)
    assert surface.law.beta == pytest.approx(PLANTED.beta, abs=0.01)
    assert group.estimate("approach3").a == pytest.approx(true_a, abs=0.01)
    assert isoflop.a == pytest.approx(true_a, abs=0.03)
    assert group.main is group.estimate("approach2")
    assert len(isoflop.used) == 4


def test_the_largest_budget_is_forecast_without_its_own_runs(
    planted_sweep: Sweep, analyze_config: Config
) -> None:
    root = planted_sweep()

    def spoil(path: Path) -> None:
        record = read_record(path.parent)
        assert record is not None
        write_record(path.parent, dataclasses.replace(record, val_loss=1.5 * record.val_loss))

    before = analyze(analyze_config(), load_runs(root)).groups[0].held_out
    for path in root.glob("*-1e+12-*/record.json"):
        spoil(path)
    after = analyze(analyze_config(), load_runs(root)).groups[0].held_out
    assert before is not None
    assert after is not None
    assert [f.loss for f in before.forecasts] == [f.loss for f in after.forecasts]
    assert after.loss == pytest.approx(1.5 * before.loss)
    assert before.n_budgets == 3
    assert before.forecasts[0].error == pytest.approx(0.0, abs=0.005)
    bounds = before.forecasts[0].loss_interval
    assert bounds is not None
    assert bounds.low < before.loss * 1.003
    assert bounds.high > before.loss * 0.997


def test_seed_noise_is_the_planted_one_with_its_degrees_of_freedom(planted: Analysis) -> None:
    noise = planted.groups[0].noise
    assert noise is not None
    assert noise.degrees == noise.cells == 36
    scale = float(np.mean(planted.runs.loss))
    # The planted sd is .002 in ln L; 36 degrees leave 12 % of error on a standard deviation.
    assert noise.sd == pytest.approx(0.002 * scale, rel=0.4)


def test_the_checklist_fills_itself_and_says_what_a_table_does_not(planted: Analysis) -> None:
    rows = {item: here for _, item, here in checklist_table(planted.groups[0]).rows}
    assert rows["equation"].startswith("L = E + A N^-alpha + B D^-beta; five free")
    assert rows["loss function"] == "Huber, delta 0.001, of ln L, sum over runs"
    assert "agree; objective" in rows["optimiser and certificate"]
    assert (rows["N counts"], rows["C counts"]) == ("no_input_embedding", "full_attention")
    assert rows["runs and sizes"] == "72 runs, 9 sizes"
    assert (rows["data"], rows["optimizer"], rows["seeds"]) == ("pysource", "adamw", "0, 1")
    assert rows["schedule, matched to D"] == "cosine, yes"
    assert rows["evaluated on"] == "65.5k tokens"
    assert rows["data hash"] == planted.runs.sha256[:16]
    assert rows["target over largest run"].startswith("1")
    bare = dataclasses.replace(planted.groups[0].runs, records=())
    silent = checklist_table(dataclasses.replace(planted.groups[0], runs=bare))
    assert dict(row[1:] for row in silent.rows)["optimizer"] == "unknown: a table does not say"


def test_one_seed_states_no_seed_noise(planted_sweep: Sweep, analyze_config: Config) -> None:
    assert analyze(analyze_config(), load_runs(planted_sweep())).groups[0].noise is None


def test_a_planted_effect_of_depth_is_measured(
    planted_sweep: Sweep, analyze_config: Config
) -> None:
    def tilt(record):  # type: ignore[no-untyped-def]
        aspect = record.d_model / record.n_layers
        return dataclasses.replace(
            record, val_loss=record.val_loss * (1 + 0.01 * np.log2(aspect / 24))
        )

    root = planted_sweep(sd=0.0, change=tilt)
    table = shape_table(analyze(analyze_config(), load_runs(root)).groups[0])
    assert table is not None
    found = re.search(r"by ([+-][0-9.]+)", table.note)
    assert found is not None
    assert float(found[1]) == pytest.approx(1.0, abs=0.3)


def test_the_report_holds_its_figures_and_nothing_remote(
    planted: Analysis, files: ReportFiles
) -> None:
    page = files.html.read_text(encoding="utf-8")
    assert set(re.findall(r'(?:src|href)="(.{5})', page)) == {"data:"}
    assert "url(" not in page
    assert "@import" not in page
    assert page.count("data:image/svg+xml;base64,") == 8
    assert page.index('class="verdict"') < page.index("<figure")
    assert "prefers-color-scheme:dark" in page
    assert 'name="viewport"' in page
    names = {path.stem for path in files.figures.glob("*.svg")}
    assert names == {path.stem for path in files.figures.glob("*.png")}
    assert {"isoflop", "optimum", "residuals", "surface", "backtest", "shapes"} <= names
    text = files.markdown.read_text(encoding="utf-8")
    for table in group_tables(planted.groups[0]):
        assert table.title in page
        assert f"### {table.title.split(' L =')[0].split('(')[0].strip()}" in text
    assert not list(files.law.parent.glob("*.tmp"))


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)


def test_names_in_the_data_cannot_become_html(tmp_path: Path, analyze_config: Config) -> None:
    evil = '<script>alert(1)</script><img src=x onerror="a">'
    rows = [
        f"{n},{d},{PLANTED.loss(n, d)},'{evil}','{evil}{n:g}-{d:g}'"
        for n in (1e4, 3e4, 1e5, 3e5)
        for d in (1e5, 1e6, 1e7)
    ]
    path = tmp_path / "runs.csv"
    text = "params,tokens,loss,group,run_id\n" + "\n".join(rows).replace(evil, evil + "x")
    path.write_text(text.replace('"', "'"), encoding="utf-8")
    analysis = analyze(analyze_config(), load_runs(path))
    page = write_report(analysis, tmp_path / "o", [f"runs={evil}"]).html.read_text("utf-8")
    tags = _Tags()
    tags.feed(page)
    assert "script" not in tags.seen
    assert "<img src=x" not in page
    assert "&lt;script&gt;" in page


def test_law_json_answers_like_the_analysis_it_came_from(
    planted: Analysis, files: ReportFiles, ask: Ask
) -> None:
    document = json.loads(files.law.read_text())
    assert document["data_sha256"] == planted.runs.sha256
    assert document["conventions"]["flops"] == "full_attention"
    fits = {fit["name"]: fit for fit in document["groups"][0]["fits"]}
    assert fits["approach3"]["certificate"]["gradient"] < 1e-8
    question = ask(law=str(files.law), flops=1e13)
    (answer,) = predict(question, find_law(question))
    (group,) = planted.groups
    surface = group.accepted("approach3")
    assert isinstance(surface, ParametricFit)
    assert answer.params == pytest.approx(float(group.cost.n_opt(surface.law, 1e13)), rel=1e-9)
    assert answer.params_interval is not None
    assert answer.params_interval.low < answer.params < answer.params_interval.high
    question = dataclasses.replace(question, fit="approach2")
    (other,) = predict(question, find_law(question))
    isoflop = group.accepted("approach2")
    assert isinstance(isoflop, IsoflopFit)
    assert other.params == pytest.approx(float(isoflop.params_law.at(1e13)), rel=1e-9)
    assert other.loss is None
    assert any("full_attention" in note for note in answer.notes)


def test_the_same_seed_gives_the_same_law_and_the_same_figure(
    planted_sweep: Sweep, analyze_config: Config
) -> None:
    root = planted_sweep()
    made = []
    for _ in range(2):
        analysis = analyze(analyze_config(bootstrap=50), load_runs(root))
        with styled():
            figure = isoflop_curves(analysis.groups[0])
        assert figure is not None
        made.append((json.dumps(law_document(analysis, "")), drawn(figure, "svg")))
    assert made[0] == made[1]


def test_a_ladder_of_one_ratio_has_no_law(tmp_path: Path, analyze_config: Config) -> None:
    rng = np.random.default_rng(0)
    sizes = np.geomspace(1e7, 1e9, 8)
    chin = LossLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
    noisy = chin.loss(sizes, 20 * sizes) * np.exp(0.005 * rng.standard_normal(8))
    lines = [f"{n},{20 * n},{loss}" for n, loss in zip(sizes, noisy, strict=True)]
    path = tmp_path / "ladder.csv"
    path.write_text("params,tokens,loss\n" + "\n".join(lines), encoding="utf-8")
    (group,) = analyze(analyze_config(), load_runs(path)).groups
    assert group.main is None
    assert all("not identified" in e.reason for e in group.estimates if "approach3" in e.name)
    assert verdict(group)[0].startswith("No law")


def test_too_few_runs_for_any_method_are_refused(tmp_path: Path, analyze_config: Config) -> None:
    path = tmp_path / "two.csv"
    path.write_text("params,tokens,loss\n1e6,1e8,3\n2e6,1e8,2.9\n", encoding="utf-8")
    with pytest.raises(FitRefusedError, match="no method fits 2 runs"):
        analyze(analyze_config(), load_runs(path))


def test_groups_are_never_pooled(tmp_path: Path, analyze_config: Config) -> None:
    lines = ["params,tokens,loss,group"]
    for name, factor in (("good", 1.0), ("bad", 1.3)):
        for n in np.geomspace(1e4, 1e6, 5):
            lines += [f"{n},{d},{PLANTED.loss(n, d) * factor},{name}" for d in (1e6, 1e7, 1e8)]
    path = tmp_path / "groups.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    runs = load_runs(path)
    analysis = analyze(analyze_config(), runs)
    floors = [g.accepted("approach3").law.E for g in analysis.groups]  # type: ignore[union-attr]
    assert floors == pytest.approx([0.9, 1.17], rel=1e-4)
    assert len(analyze(analyze_config(group="bad"), runs).groups) == 1
    with pytest.raises(ConfigError, match="good, bad"):
        analyze(analyze_config(group="worse"), runs)


def test_numbers_read_as_people_write_them() -> None:
    assert [count(v) for v in (812, 1240, 72.25e9, 1.329e12, 999.9e9)] == [
        "812", "1.24k", "72.2B", "1.33T", "1.00T",
    ]  # fmt: skip
    assert [flops(v) for v in (1e18, 5.76e23, 2.2e11)] == ["1e18", "5.76e23", "2.2e11"]


def test_flops_spent_on_branches_count_a_trunk_once(
    planted_sweep: Sweep, analyze_config: Config
) -> None:
    def branch(record: RunRecord) -> RunRecord:
        return dataclasses.replace(record, flops_spent=0.25 * record.flops["full_attention"])

    runs = load_runs(planted_sweep(change=branch))
    group = analyze(analyze_config(bootstrap=20), runs).groups[0]
    rows = {item: here for _, item, here in checklist_table(group).rows}
    assert float(rows["FLOPs spent"]) == pytest.approx(0.25 * runs.flops.sum(), rel=0.005)
