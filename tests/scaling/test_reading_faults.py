"""Faults of a table that would give a law of the wrong unit, size or count."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmtrain.scaling.analysis import _next_runs, analyze
from llmtrain.scaling.binning import drop_duplicates
from llmtrain.scaling.budget_column import check_budgets
from llmtrain.scaling.config import AnalyzeConfig
from llmtrain.scaling.fit_tables import estimator_table
from llmtrain.scaling.intake import check_runs
from llmtrain.scaling.law import LossLaw
from llmtrain.scaling.load import load_runs
from llmtrain.scaling.parametric import ParametricFit
from llmtrain.scaling.plot.curves import loss_label
from llmtrain.scaling.report import write_report
from llmtrain.scaling.runs import Runs
from llmtrain.scaling.texts import Texts, loss_scale
from llmtrain.scaling.verdict import verdict
from llmtrain.spec.errors import ConfigError, FitRefusedError

Config = Callable[..., AnalyzeConfig]
LAW = LossLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
CELLS = [
    (float(n), float(c / 6 / n), float(c))
    for c in np.geomspace(1e18, 1e20, 5)
    for n in float(LAW.n_opt(c)) * np.geomspace(0.25, 4.0, 9)
]


def read(tmp_path: Path, header: str, rows: list[str]) -> Runs:
    path = tmp_path / "runs.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return load_runs(path)


def grid(
    header: str = "", more: Callable[[int, float], str] = lambda i, c: ""
) -> tuple[str, list[str]]:
    """A table on the law; `header` and `more` (of row number and FLOPs) add columns."""
    rng = np.random.default_rng(0)
    rows = []
    for i, (n, d, c) in enumerate(CELLS):
        loss = LAW.loss(n, d) * np.exp(1e-3 * rng.standard_normal())
        rows.append(f"{n},{d},{c},{loss}{more(i, c)}")
    return f"params,tokens,flops,loss{header}", rows


@pytest.mark.parametrize("unit", [1.3, 1e18, 8.64e19])
def test_budgets_of_another_count_or_unit_than_flops_are_refused(
    unit: float, tmp_path: Path, analyze_config: Config
) -> None:
    runs = read(tmp_path, *grid(",budget", lambda i, c: f",{c / unit}"))
    words = re.escape(f"row 2: budget {1e18 / unit:g} against flops 1e+18, one of 45 such rows")
    with pytest.raises(FitRefusedError, match=words):
        analyze(analyze_config(bootstrap=50), runs)


def test_a_budget_column_wrong_in_one_group_refuses_that_group_by_name(
    tmp_path: Path, analyze_config: Config
) -> None:
    header, rows = grid(",budget", lambda i, c: f",{c}")
    wrong = [row.rpartition(",")[0] + ",1000" for row in rows]
    rows = [f"{row},good" for row in rows] + [f"{row},bad" for row in wrong]
    runs = read(tmp_path, f"{header},group", rows)
    analysis = analyze(analyze_config(bootstrap=50), runs)
    alone = analyze(analyze_config(bootstrap=50, group="good"), runs)
    good, bad = analysis.groups
    assert good.main is not None
    assert alone.groups[0].main is not None
    assert good.main.a == alone.groups[0].main.a
    assert bad.main is None
    assert not bad.curves
    (line,) = verdict(bad)
    assert "row 47: budget 1000 against flops 1e+18, one of 45 such rows" in line
    assert [f.code for f in bad.findings if f.level == "refusal"] == ["budget"]
    files = write_report(analysis, tmp_path / "report", [])
    assert "row 47: budget 1000 against" in files.html.read_text(encoding="utf-8")
    with pytest.raises(FitRefusedError, match=r"fits 45 runs: .*row 47: budget 1000 against"):
        analyze(analyze_config(bootstrap=50, group="bad"), runs.take(runs.group == "bad"))


def test_every_group_that_no_method_fits_is_named(tmp_path: Path, analyze_config: Config) -> None:
    header, rows = grid(",budget,group", lambda i, c: f",1000,{'one' if i < 20 else 'two'}")
    with pytest.raises(FitRefusedError, match=r"fits 45 runs: one: .*row 2.*; two: .*row 22"):
        analyze(analyze_config(bootstrap=50), read(tmp_path, header, rows))


def test_single_rows_off_their_budget_are_named(tmp_path: Path) -> None:
    runs = read(tmp_path, *grid(",budget", lambda i, c: f",{c / (1.3 if i == 4 else 1.05)}"))
    (found,) = check_budgets(runs, 0.1)
    assert "row 6 (budget 7.69231e+17, flops 1e+18);" in found.message


def test_flops_are_6nd_only_where_the_budgets_given_are(tmp_path: Path) -> None:
    header = "params,tokens,loss,budget"
    some = read(tmp_path, header, ["1e9,2e10,3,1.2e20", "1e9,3e10,2.9,"])
    assert some.conventions.flops_imputed
    assert some.flops.tolist() == [1.2e20, 1.8e20]
    with pytest.raises(FitRefusedError, match=r"row 2: budget 1.5e\+20 against .* fill the budget"):
        read(tmp_path, header, ["1e9,2e10,3,1.5e20", "1e9,3e10,2.9,"])
    with pytest.raises(FitRefusedError, match=r"row 2: budget 120 against 6 .* not PF-days"):
        read(tmp_path, header, ["1e9,2e10,3,120", "1e9,3e10,2.9,180"])


def test_no_candidate_inside_leaves_no_next_run(tmp_path: Path, analyze_config: Config) -> None:
    (group,) = analyze(analyze_config(bootstrap=20), read(tmp_path, *grid())).groups
    assert group.surface is not None
    assert isinstance(group.surface.fit, ParametricFit)
    assert _next_runs(group, group.surface.fit)
    tiny = dataclasses.replace(group.runs, budget=group.runs.budget / 1e18)
    assert _next_runs(dataclasses.replace(group, runs=tiny), group.surface.fit) == ()


def test_seeds_that_are_text_are_replicas(tmp_path: Path) -> None:
    rows = [f"1e9,2e10,{loss},{seed}" for loss, seed in ((3, "s1"), (3.1, "s2"), (3.2, "s1"))]
    rows += ["1e9,2e10,3.3,7", "1e9,2e10,3.4,", "1e9,2e10,3.5,None"]
    runs = read(tmp_path, "params,tokens,loss,seed", rows)
    assert runs.seed[:4].tolist() == [8, 9, 8, 7]
    assert np.isnan(runs.seed[4:]).all()
    assert drop_duplicates(runs).loss.tolist() == [3, 3.1, 3.3, 3.4]


def test_shapes_of_equal_size_are_different_cells(tmp_path: Path) -> None:
    shapes = ("512,8", "1024,2", "512,8", ",", ",")
    rows = [f"1e9,2e10,{3 + i},{shape}" for i, shape in enumerate(shapes)]
    runs = read(tmp_path, "params,tokens,loss,d_model,n_layers", rows)
    assert drop_duplicates(runs).loss.tolist() == [3, 4, 6]


def test_one_run_id_of_two_sizes_is_refused(tmp_path: Path) -> None:
    header = "run_id,params,tokens,loss,group"
    rows = ["a,1e9,1e10,3,x", "a,1e9,2e10,2.9,x", "a,2e9,2e10,2.8,y"]
    assert len(read(tmp_path, header, rows)) == 3
    with pytest.raises(ConfigError, match=r"run_id a names sizes 1e\+09 and 2e\+09; give each run"):
        read(tmp_path, header, [row.replace("y", "x") for row in rows])


def test_a_metric_other_than_nats_is_the_unit_and_is_warned_of(
    tmp_path: Path, analyze_config: Config
) -> None:
    runs = read(tmp_path, *grid(",metric", lambda i, c: ",BPB"))
    assert runs.conventions.texts.metric == "bits per byte"
    assert "metric" in [found.code for found in check_runs(runs)]
    assert "metric" not in [found.code for found in check_runs(read(tmp_path, *grid()))]
    (group,) = analyze(analyze_config(bootstrap=20), runs).groups
    lines = " ".join(verdict(group))
    assert "bits per byte" in lines
    assert "nats" not in lines
    assert loss_label(group) == "final loss (bits per byte)"
    with pytest.raises(FitRefusedError, match="metric differs, nats per token against bits per"):
        loss_scale(Texts(), runs.conventions.texts)
    header, rows = grid(",group,metric", lambda i, c: ",b,bpb" if i > 20 else ",a,")
    with pytest.raises(FitRefusedError, match="mixes losses in bits per byte and nats per token"):
        read(tmp_path, header, rows)


def test_a_group_counts_its_own_rows_left_out(tmp_path: Path) -> None:
    rows = ["1e9,2e10,3,x,done", "2e9,2e10,2.9,y,done", "3e9,2e10,2.8,y,failed"]
    runs = read(tmp_path, "params,tokens,loss,group,status", [*rows, *rows[1:2]])
    x, y = (drop_duplicates(runs.take(runs.group == name)) for name in "xy")
    assert [f.code for f in check_runs(x) if f.level == "warning"] == []
    (found,) = [f for f in check_runs(y) if f.code == "excluded"]
    assert found.message.startswith("2 rows left out")
    assert [len(own.left_out) for own in (x, y)] == [0, 2]
    assert len(x.exclusions) == 1


def test_a_refused_law_gives_each_approach_its_line(tmp_path: Path, analyze_config: Config) -> None:
    header, rows = grid(",group", lambda i, c: ",whole")
    few = [row.replace("whole", "few") for row in rows[:5]]
    group = analyze(analyze_config(bootstrap=20), read(tmp_path, header, rows + few)).groups[1]
    lines = verdict(group)
    assert lines[0] == "No law: Approaches 1, 2 and 3 all refuse these runs."
    assert [line.partition(":")[0] for line in lines[1:]] == [e.title for e in group.approaches]


def test_flops_of_few_digits_are_6nd_to_rounding(tmp_path: Path, analyze_config: Config) -> None:
    header, rows = grid()
    parts = [row.split(",") for row in rows]
    short = [f"{float(n):.6g},{float(d):.6g},{c},{loss}" for n, d, c, loss in parts]
    (group,) = analyze(analyze_config(bootstrap=20), read(tmp_path, header, short)).groups
    assert not group.cost.is_exact
    assert "C = 6ND holds to rounding." in estimator_table(group).note
    off = dataclasses.replace(group, cost=dataclasses.replace(group.cost, slope=0.01))
    assert "C is not 6ND: C = 6ND x" in estimator_table(off).note
