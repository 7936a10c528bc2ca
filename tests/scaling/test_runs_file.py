"""A sweep's own table, read back through the CSV door."""

import csv
import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llmtrain.scaling.analysis import analyze
from llmtrain.scaling.config import AnalyzeConfig
from llmtrain.scaling.load import load_runs
from llmtrain.scaling.lr_bracket import split_rates
from llmtrain.scaling.report import write_report
from llmtrain.scaling.runs_file import runs_table
from llmtrain.spec.record import RunRecord

Sweep = Callable[..., Path]
Config = Callable[..., AnalyzeConfig]


def test_the_reports_table_fits_as_the_folder_does(
    planted_sweep: Sweep, analyze_config: Config, tmp_path: Path
) -> None:
    config = analyze_config(bootstrap=50)
    folder = load_runs(planted_sweep())
    found = analyze(config, folder)
    write_report(found, tmp_path, ["runs=planted"])
    table = load_runs(tmp_path / "runs.csv")
    for name in ("params", "tokens", "flops", "loss", "budget", "seed", "d_model", "n_layers"):
        np.testing.assert_array_equal(getattr(table, name), getattr(folder, name), name)
    assert table.conventions.params == folder.conventions.params
    assert table.conventions.flops == folder.conventions.flops
    again = analyze(config, table)
    for before, after in zip(found.groups[0].estimates, again.groups[0].estimates, strict=True):
        assert (before.name, before.a, before.a_interval) == (after.name, after.a, after.a_interval)


def test_branches_and_other_rates_are_told_apart_in_the_table_too(
    planted_sweep: Sweep, tmp_path: Path
) -> None:
    def change(record: RunRecord) -> RunRecord:
        factor = 2.0 if record.d_model == 32 else 1.0
        return dataclasses.replace(record, trunk=f"trunk-w{record.d_model}", lr_multiplier=factor)

    folder = load_runs(planted_sweep(change=change))
    path = tmp_path / "runs.csv"
    path.write_text(runs_table(folder), encoding="utf-8")
    table = load_runs(path)
    assert table.lineage.tolist() == folder.lineage.tolist()
    kept, others = split_rates(table)
    assert others is not None
    assert not (kept.d_model == 32).any()
    assert len(kept) == int((folder.lr_multiplier == 1.0).sum())


def test_a_report_on_a_table_writes_none(
    planted_sweep: Sweep, analyze_config: Config, tmp_path: Path
) -> None:
    path = tmp_path / "given.csv"
    path.write_text(runs_table(load_runs(planted_sweep())), encoding="utf-8")
    write_report(analyze(analyze_config(bootstrap=20), load_runs(path)), tmp_path / "out", [])
    assert not (tmp_path / "out" / "runs.csv").exists()


def test_no_name_becomes_a_formula(planted_sweep: Sweep) -> None:
    runs = load_runs(planted_sweep())
    evil = [dataclasses.replace(record, data_name="=cmd|' /C calc'!A0") for record in runs.records]
    text = runs_table(dataclasses.replace(runs, records=tuple(evil)))
    cells = {row["data"] for row in csv.DictReader(io.StringIO(text))}
    assert cells == {"'=cmd|' /C calc'!A0"}
