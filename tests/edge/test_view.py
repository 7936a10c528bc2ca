"""The views of a sweep and of a run as lines, from known states."""

import dataclasses
import io
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from console import run_line
from pace import Pace
from rich.console import Console
from screen import bar, duration, say, spoken, thousands
from stray import StrayLines
from sweep_console import SweepConsole
from sweep_view import Slot, SweepView, budget_lines, curve_lines, curves_of, view_lines
from text_plot import HEIGHT, LOWEST, POINT, BudgetCurve, column_of, panel, panels

from llmtrain.spec.bill import Bill, BillConfig
from llmtrain.spec.words import plural
from llmtrain.sweep.ledger import CellStatus

BILL = BillConfig(
    region="FRA",
    grams_per_kwh=None,
    pue=1.2,
    device_watts=None,
    price_per_hour=2.0,
    currency="EUR",
    assumed_mfu=None,
)
COST = Bill(device_hours=1.5, kwh=0.84, co2e_kg=0.047, money=3.0, sources=("estimated",))


def cell(budget, params, loss=None, *, seed=0, state=None, rate=1.0):
    return CellStatus(
        run_id=f"C{budget:g}-w{params}-s{seed}-0123456789",
        state=state or ("planned" if loss is None else "done"),
        reason="loss nan at step 3 of 100" if state == "failed" else None,
        val_loss=loss,
        facts={
            "budget": budget,
            "n_params": params,
            "flops": budget,
            "lr_multiplier": rate,
            "seed": seed,
        },
        flops_done=0.0,
        seconds=None,
    )


def sweep(**changes):
    """Two budgets: the first finished with its minimum at 2000, the second begun."""
    cells = [cell(1e9, n, 3.0 + (i - 1) ** 2 / 10) for i, n in enumerate((1000, 2000, 4000))]
    cells += [cell(1e10, 2000, 2.5), cell(1e10, 4000, state="running"), cell(1e10, 8000)]
    slot = Slot(
        title=cells[4].title,
        share=0.421,
        loss=2.61234,
        tokens_per_second=61234.0,
        mfu=0.314,
        left_s=75.0,
    )
    state = {
        "cells": cells,
        "slots": [slot],
        "share": 0.5,
        "elapsed_s": 120.0,
        "left_s": 3600.0,
        "bill": COST,
        "bill_config": BILL,
    }
    return SweepView(**state | changes)


def shown(view, width, height=40):
    return [line.plain for line in view_lines(view, width=width, height=height)]


@pytest.mark.parametrize("width", [80, 140])
def test_everything_asked_for_is_there_and_no_line_is_too_wide(width):
    lines = shown(sweep(), width)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    assert lines[0] == "6 cells: 1 planned, 1 running, 4 done"
    assert lines[1].startswith(" 50% of the FLOPs  ━")
    assert lines[1].endswith("2 min so far, about 60 min left")
    assert "estimated 0.84 kWh, 47 g CO2e" in lines[2]
    assert "3.00 EUR" in lines[2]
    (row,) = [line.split() for line in lines if line.startswith("C1e+10-w4000")]
    assert row[1:] == ["42%", "2.6123", "61.2k", "31%", "75", "s"]
    assert "1e9  3/3  ◆ N 2.00k" in text
    assert "1e10  1/3  ◆ N 2.00k" in text


@pytest.mark.parametrize("height", range(1, 25))
def test_a_low_screen_is_never_overrun(height):
    crowd = [cell(1e10, n, state="failed") for n in range(10, 20)]
    view = sweep(cells=[*sweep().cells, *crowd], slots=sweep().slots * 8)
    for width in (20, 80):
        lines = shown(view, width, height)
        assert len(lines) <= height
        assert max(map(len, lines)) <= width
    if height >= 14:
        assert "FAILED" in "\n".join(shown(view, 80, height))


def test_failures_are_named_the_last_ones_counted():
    failed = [cell(1e9, n, state="failed") for n in range(1, 6)]
    text = "\n".join(shown(sweep(cells=failed), 80))
    assert f"FAILED {failed[0].run_id}: loss nan at step 3 of 100" in text
    assert "3 more have failed" in text


def test_the_lowest_point_lies_where_the_lowest_loss_is():
    points = ((1e3, 3.2), (1e4, 2.9), (1e5, 3.5))
    curve = BudgetCurve(budget=1e9, n_done=3, n_cells=4, points=points)
    lines = panel(curve, (1e3, 1e5), 33)
    inner = 33 - 8
    rows = [line[8:] for line in lines[1:-2]]
    assert len(lines) == HEIGHT
    assert rows[-1].index(LOWEST) == inner // 2  # half way on a logarithmic axis
    assert rows[0].index(POINT) == inner - 1  # the worst is on top, at the right end
    assert rows[2].index(POINT) == 0  # half way between the two
    assert lines[1].startswith(" 3.500 ")
    assert lines[5].startswith(" 2.900 ")
    assert lines[-1].split() == ["1.00k", "100k"]


def test_columns_follow_the_logarithm():
    assert [column_of(10.0**k, (1.0, 1e4), 41) for k in range(5)] == [0, 10, 20, 30, 40]
    assert column_of(5.0, (5.0, 5.0), 41) == 20


def test_panels_stand_side_by_side_where_there_is_room():
    curves = [
        BudgetCurve(budget=10.0**k, n_done=0, n_cells=5, points=((1e3, 3.0),)) for k in range(4)
    ]
    assert len(panels(curves, (1e3, 1e4), 140)) == HEIGHT
    assert len(panels(curves, (1e3, 1e4), 80)) == 2 * HEIGHT
    assert len(panels(curves, (1e3, 1e4), 30)) == 4 * HEIGHT
    assert panels([], (1e3, 1e4), 80) == []


def test_a_size_is_the_mean_of_its_seeds_and_other_rates_are_left_out():
    cells = [cell(1e9, 1000, 3.0, seed=s) for s in (0, 1, 2)] + [cell(1e9, 1000, 3.6, seed=3)]
    cells += [cell(1e9, 1000, 1.0, rate=0.5), cell(1e9, 2000, 3.3)]
    (curve,) = curves_of(cells)
    assert curve.points == ((1000.0, pytest.approx(3.15)), (2000.0, 3.3))
    assert (curve.n_done, curve.n_cells) == (6, 6)
    assert budget_lines(cells) == ["budget 1e9: 6/6 cells, lowest loss 3.1500 at N 1.00k"]


def test_of_cells_that_differ_in_another_setting_the_lowest_loss_stands():
    cells = [cell(1e9, 1000, loss, seed=s) for s in (0, 1) for loss in (2.0 + s, 1.0 + s, 3.0 + s)]
    assert budget_lines(cells) == ["budget 1e9: 6/6 cells, lowest loss 1.5000 at N 1.00k"]


def test_nothing_is_drawn_before_a_cell_has_ended():
    assert curve_lines([cell(1e9, 1000)], 80) == []
    unknown = CellStatus(
        run_id="x", state="done", reason=None, val_loss=2.0, facts={}, flops_done=0, seconds=1.0
    )
    assert curve_lines([unknown], 80) == []
    view = sweep(cells=[unknown], slots=[], share=None, bill=None, left_s=None)
    assert shown(view, 80) == ["1 cell: 1 done"]


PROGRESS = SimpleNamespace(
    step=30, n_steps=120, loss=2.34567, lr=1.25e-2, seq_len=128, tokens_per_second=61234.0, mfu=None
)


@pytest.mark.parametrize("width", [40, 80, 140])
def test_one_run_is_one_line(width):
    line = run_line(PROGRESS, 75.0, width)
    assert len(line) <= width
    assert "\n" not in line
    if width >= 80:
        assert line.startswith(" 25%  ━")
        assert line.endswith("loss 2.3457  lr 1.25e-02  T 128  61.2k tok/s  75 s left")


def test_the_pace_counts_from_the_first_look(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("pace.time.monotonic", lambda: now[0])
    pace = Pace()
    assert pace.left(0.5) is None  # a run that goes on from its half
    now[0] += 10
    assert pace.left(0.6) == pytest.approx(40.0)


def test_the_time_a_sweep_has_left_is_not_that_of_its_workers_start(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("pace.time.monotonic", lambda: now[0])
    console = SweepConsole(console_for(80, terminal=False))
    one = cell(1e10, 2000, state="running")
    console.opened([], 0, 2, [])
    now[0] += 60.0  # imports, compilation
    for done, left in ((0.0, None), (1e8, None), (1.1e9, 89.0)):
        console.cells = {Path(one.run_id): dataclasses.replace(one, flops_done=done)}
        assert console.view().left_s == (None if left is None else pytest.approx(left))
        now[0] += 10.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.3, "<1 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (7200, "2.0 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_one_thing_is_not_called_several():
    assert (plural(0, "cell"), plural(1, "cell"), plural(2, "cell")) == (
        "0 cells",
        "1 cell",
        "2 cells",
    )
    console = console_for(80, terminal=False)
    SweepConsole(console).opened([], 1, 2, [Path("x/one")])
    assert printed(console) == "1 cell: 1 done before, 0 to train on 1 worker\n"
    assert budget_lines([cell(1e9, 10)]) == ["budget 1e9: 0/1 cell"]


def test_rates_and_bars():
    assert [thousands(v) for v in (812, 9996, 61234, 999600, 1.333e6)] == [
        "812", "10.0k", "61.2k", "1.00M", "1.33M",
    ]  # fmt: skip
    assert (bar(0.25, 8), bar(0.0, 4), bar(1.0, 4), bar(0.5, 3)) == ("━━──────", "────", "━━━━", "")


def console_for(width, encoding="utf-8", *, terminal):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    return Console(
        file=file, width=width, force_terminal=terminal, color_system=None, soft_wrap=True
    )


def printed(console):
    console.file.flush()
    return console.file.buffer.getvalue().decode(console.encoding)


def test_an_encoding_without_the_signs_gets_plain_ones():
    console = console_for(80, "ascii", terminal=False)
    for line in view_lines(sweep(), width=80, height=40):
        console.print(spoken(line, console))
    text = printed(console)
    assert "1e9  3/3  * N 2.00k" in text
    assert "+------" in text


def test_sentences_break_between_words_on_a_terminal_and_commands_never():
    sentence = "- " + "word " * 30
    console = console_for(40, terminal=True)
    say(console, sentence)
    say(console, "next: python scripts/predict.py " + "x=1 " * 20)
    lines = printed(console).splitlines()
    assert all(len(line) <= 40 for line in lines[:-1])
    assert lines[1].startswith("  word")
    assert len(lines[-1]) > 40
    pipe = console_for(40, terminal=False)
    say(pipe, sentence)
    assert printed(pipe).count("\n") == 1


def test_a_status_is_json_with_its_cost(cli, tmp_path):
    (tmp_path / "runs/x/a").mkdir(parents=True)
    (tmp_path / "runs/x/a/state.json").write_text('{"state": "planned", "reason": null}')
    found = json.loads(cli("status.py", "runs=runs/x", "json=true").stdout)
    assert found["cost"] is None
    assert found["counts"] == {"planned": 1}
    for word in ("bill.region=ATLANTIS", "bill.pue=0.5", "bill.price_per_hour=cheap", "bill.x=1"):
        wrong = cli("status.py", "runs=runs/x", word)
        assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1), wrong.stderr


def test_what_other_processes_write_to_stderr_comes_as_lines():
    found: list[str] = []
    stray = StrayLines(found.append)
    try:
        subprocess.run(["/bin/sh", "-c", "echo one >&2; printf two >&2"], check=True)
    finally:
        stray.give_back()
    stray.thread.join()  # it reads to the end, however late it gets its turn
    assert found == ["one", "two"]
