"""The cost of a sweep in its report: by hand, and estimated where it is."""

import csv
import dataclasses
import json

import pytest

from llmtrain.scaling.analysis import analyze
from llmtrain.scaling.expense_table import expense_table
from llmtrain.scaling.load import load_runs
from llmtrain.scaling.publish import summary
from llmtrain.scaling.report import write_report
from llmtrain.spec.bill import PLAIN
from llmtrain.spec.expense import expense_of
from llmtrain.spec.record import Spent
from llmtrain.spec.rundir import write_state


def measured(record):
    return dataclasses.replace(
        record, energy_j=7.2e6, energy_source="rapl", seconds={"train": 3600.0}
    )


def estimated(record):
    return dataclasses.replace(measured(record), energy_source="estimated")


def analysed(folder, analyze_config, **bill):
    for path in folder.glob("*/record.json"):
        config = {"config": {"bill": dataclasses.asdict(PLAIN) | bill}}
        path.with_name("config.json").write_text(json.dumps(config))
    runs = load_runs(folder)
    expense = expense_of(folder, runs.records)
    return analyze(analyze_config(bootstrap=20), runs, None, expense)


def test_a_report_says_what_the_runs_cost(planted_sweep, analyze_config, tmp_path):
    bill = {"region": "FRA", "price_per_hour": 2.0, "currency": "EUR"}
    analysis = analysed(planted_sweep(change=measured), analyze_config, **bill)
    table = expense_table(analysis.expense)
    n = len(analysis.runs)
    tokens = sum(record.n_tokens for record in analysis.runs.records)
    assert table.rows[-1] == (
        "all",
        str(n),
        f"{n:.3g}",
        f"{2 * n:.3g} kWh",
        f"{2 * n * 0.056:.3g} kg",
        f"{2 * n:.2f} EUR",
        "7.2e+03",
        f"{7.2e6 * n / tokens:.3g}",
        "rapl",
    )
    assert [row[0] for row in table.rows[:-1]] == ["1e11", "2.2e11", "4.6e11", "1e12"]
    assert "56 g CO2e per kWh (FRA), PUE 1" in table.note
    files = write_report(analysis, tmp_path, [])
    for path in (files.markdown, files.html):
        assert "What the runs cost" in path.read_text()
    with files.runs.open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["energy_j"], row["energy_source"]) for row in rows} == {("7200000.0", "rapl")}
    found = summary(analysis)
    assert found["cost/kwh"] == pytest.approx(2 * n)
    assert found["cost/energy"] == "measured"


def test_what_runs_without_a_record_have_cost_stands_beside_it(planted_sweep, analyze_config):
    folder = planted_sweep(change=measured)
    lost = folder / "lost"
    lost.mkdir()
    (lost / "config.json").write_text(json.dumps({"config": {"bill": dataclasses.asdict(PLAIN)}}))
    spent = Spent(
        seconds={"train": 1800.0}, energy_j=1.8e6, energy_source="rapl", hardware={"threads": "1"}
    )
    write_state(lost, "failed", "loss nan", spent)
    analysis = analysed(folder, analyze_config)
    note = expense_table(analysis.expense).note
    assert "Besides measured 0.5 kWh, 238 g CO2e in 1 run without a record (1 failed)." in note
    found = summary(analysis)
    assert found["cost/kwh"] == pytest.approx(2 * len(analysis.runs))
    assert found["cost/without_record/kwh"] == pytest.approx(0.5)
    assert found["cost/without_record/n_runs"] == 1


def test_an_estimate_is_called_one_in_every_cell(planted_sweep, analyze_config):
    sweep, price = planted_sweep(change=estimated), {"price_per_hour": 1e-4}
    table = expense_table(analysed(sweep, analyze_config, **price).expense)
    for row in table.rows:
        for cell in (row[3], row[4], row[6], row[7]):
            assert cell.startswith("estimated ")
        assert row[-1] == "estimated"
    assert table.rows[0][1:6:4] == ("9", "0.00090 USD")  # an hour each


def test_a_table_of_runs_has_no_cost():
    assert expense_table(None) is None
