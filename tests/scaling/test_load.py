"""What enters an analysis, what does not, and what is said about it."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmtrain.scaling.binning import assign_budgets, drop_duplicates
from llmtrain.scaling.bootstrap import draw_weights
from llmtrain.scaling.load import load_runs
from llmtrain.spec.errors import ConfigError, FitRefusedError

HEADER = "params,tokens,loss\n"


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "runs.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_needs_no_flops_and_says_how_they_are_counted(tmp_path: Path) -> None:
    runs = load_runs(table(tmp_path, HEADER + "1e9,1000000000,3.5\n2e12,3e13,2\n"))
    assert runs.flops.tolist() == [6e18, 3.6e26]
    assert runs.conventions.flops_imputed
    assert runs.group.tolist() == ["all", "all"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("params,loss,x\n1,2,3\n", "missing column tokens; found params, loss, x"),
        ("x\n1\n", "missing column params, tokens, loss"),
        ("", "found nothing"),
        (HEADER, "no rows"),
        (HEADER + "1e6,1e9,abc\n", "row 2, column loss: 'abc'"),
        (HEADER + "1e6,1e9,3\n1e6,-4,3\n", "row 3, column tokens: '-4'"),
        (HEADER + "1e6,1e9,nan\n", "row 2, column loss: 'nan'"),
        (HEADER + "1e6,1e9,\n", "row 2, column loss: ''"),
        ("params,tokens,loss,loss\n1,2,3,4\n", "column loss appears twice"),
    ],
)
def test_a_bad_table_is_refused_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_runs(table(tmp_path, text))


def test_a_missing_path_and_an_empty_folder_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_runs(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="holds no runs"):
        load_runs(tmp_path)


def test_rows_that_are_not_done_are_listed_with_their_status(tmp_path: Path) -> None:
    text = "params,tokens,loss,status,run_id\n1e6,1e9,3,done,a\n2e6,1e9,nan,diverged,b\n"
    runs = load_runs(table(tmp_path, text))
    assert len(runs) == 1
    assert [(item.run_id, item.reason) for item in runs.exclusions] == [("b", "status diverged")]
    with pytest.raises(FitRefusedError, match="none of 1 rows is done"):
        load_runs(table(tmp_path, "params,tokens,loss,status\n1e6,1e9,3,running\n"))


def test_unannealed_rows_leave_where_others_are_annealed(tmp_path: Path) -> None:
    text = "params,tokens,loss,annealed\n1e6,1e9,3,true\n2e6,1e9,3.1,false\n"
    assert load_runs(table(tmp_path, text)).exclusions[0].reason.startswith("not annealed")


def test_one_group_with_two_conventions_is_refused(tmp_path: Path) -> None:
    text = "params,tokens,loss,params_convention\n1e6,1e9,3,total\n2e6,1e9,3.1,non_embedding\n"
    with pytest.raises(FitRefusedError, match="mixes params_convention"):
        load_runs(table(tmp_path, text))


def test_only_the_last_checkpoint_of_a_run_is_a_final(tmp_path: Path) -> None:
    text = "params,tokens,loss,run_id\n1e6,1e9,3,a\n1e6,2e9,2.9,a\n2e6,1e9,2.8,b\n"
    assert load_runs(table(tmp_path, text)).finals().loss.tolist() == [2.9, 2.8]


def test_repeats_of_a_cell_keep_the_lowest_loss_and_seeds_all_stay(tmp_path: Path) -> None:
    text = "params,tokens,loss,seed\n1e6,1e9,3,0\n1e6,1e9,2.9,0\n1e6,1e9,3.1,1\n"
    runs = drop_duplicates(load_runs(table(tmp_path, text)))
    assert runs.loss.tolist() == [2.9, 3.1]
    assert runs.exclusions[0].run_id == "row 2"


def test_equal_flops_are_curves_and_scattered_flops_are_none(tmp_path: Path) -> None:
    rows = [(n, c / 6 / n) for c in (1e18, 1e19) for n in (1e7, 3e7, 1e8)]
    text = HEADER + "".join(f"{n!r},{d!r},3\n" for n, d in rows)
    runs, how = assign_budgets(load_runs(table(tmp_path, text)), (), 0.1)
    assert runs.budgets == pytest.approx([1e18, 1e19], rel=1e-9)
    assert how == "rows of equal FLOPs"
    text = HEADER + "".join(f"1e7,{d},3\n" for d in np.geomspace(1e9, 2e9, 30))
    runs, how = assign_budgets(load_runs(table(tmp_path, text)), (), 0.1)
    assert how.startswith("none")
    assert len(runs.budgets) == 0


def test_a_sweeps_folder_is_read_with_a_reason_for_every_run_left_out(
    planted_sweep: Callable[..., Path],
) -> None:
    root = planted_sweep()
    failed = root / "failed"
    failed.mkdir()
    (failed / "state.json").write_text(json.dumps({"state": "failed", "reason": "loss is NaN"}))
    running = root / "running"
    running.mkdir()
    (running / "config.json").write_text("{}")
    first, second = sorted(root.glob("w*"))[:2]
    (first / "metrics.jsonl").write_text("tampered")
    (second / "record.json").write_text("{")
    (root / "report").mkdir()
    runs = load_runs(root)
    reasons = {item.run_id: item.reason for item in runs.exclusions}
    assert len(runs) == 34
    assert reasons["failed"] == "failed: loss is NaN"
    assert "not finished" in reasons["running"]
    assert "hash" in reasons[first.name]
    assert "record.json" in reasons[second.name]
    assert set(reasons) == {"failed", "running", first.name, second.name}
    assert runs.conventions.params == "no_input_embedding"
    assert runs.budgets.tolist() == [1e11, 2.2e11, 4.6e11, 1e12]
    assert runs.counted_as("total").params[0] > runs.params[0]


@pytest.mark.parametrize(
    "field", ["data_id", "tokenizer_id", "seq_len", "flops_convention", "parametrization"]
)
def test_runs_that_must_not_be_pooled_are_refused_by_name(
    planted_sweep: Callable[..., Path], field: str
) -> None:
    def change(record):  # type: ignore[no-untyped-def]
        if record.d_model != 64:
            return record
        other = 64 if field == "seq_len" else "total" if field == "flops_convention" else "other"
        flops = {**record.flops, "total": 1.0}
        return dataclasses.replace(record, **{field: other, "flops": flops})

    with pytest.raises(FitRefusedError, match=f"mixes {field}"):
        load_runs(planted_sweep(change=change))


def test_the_demos_own_table_reads_as_it_is() -> None:
    path = Path(__file__).resolve().parents[2] / "docs" / "results" / "demo" / "runs.csv"
    runs = load_runs(path)
    assert len(runs) == 48
    assert runs.budgets.tolist() == [3e10, 6.5e10, 1.4e11, 3e11]
    assert np.isfinite(runs.seed).all()


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "plan.json").write_text("{}")
    with pytest.raises(FitRefusedError, match="none of 1 runs"):
        load_runs(tmp_path)


def test_constant_rate_runs_leave_where_others_are_annealed(
    planted_sweep: Callable[..., Path],
) -> None:
    root = planted_sweep(
        change=lambda record: dataclasses.replace(record, annealed=record.d_model != 64)
    )
    assert all("schedule" in item.reason for item in load_runs(root).exclusions)
    assert len(load_runs(root).exclusions) == 8


def test_runs_of_one_trunk_are_drawn_together(planted_sweep: Callable[..., Path]) -> None:
    def change(record):  # type: ignore[no-untyped-def]
        return dataclasses.replace(record, trunk=f"trunk-w{record.d_model}")

    runs = load_runs(planted_sweep(change=change))
    weights = draw_weights(runs.lineage, 50, 0)
    widths = np.unique(runs.d_model)
    assert len(widths) < len(runs)
    for width in widths:
        rows = weights[:, runs.d_model == width]
        assert (rows == rows[:, :1]).all()
    assert load_runs(planted_sweep()).lineage.tolist() == load_runs(planted_sweep()).run_id.tolist()
