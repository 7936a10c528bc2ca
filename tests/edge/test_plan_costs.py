"""What plan.py says of memory, time, energy and money before anything is trained."""

import csv
import io
import json

import plan
import pytest
from rich.console import Console

from llmtrain.corpus.shards import open_corpus
from llmtrain.spec.bill import CPU_WATTS_PER_THREAD
from llmtrain.spec.errors import ConfigError
from llmtrain.spec.memory import memory_bytes
from llmtrain.spec.plan import plan_run
from llmtrain.sweep.grid import Cell
from llmtrain.sweep.speed import assumed_speed, find_records, learn_speed
from llmtrain.training.loop import train

SWEEP = ("sweep=demo", "sweep.budgets=[3e10,6e10,1.2e11]", "sweep.seeds=[0]")


def planned(make, **changes):
    config = make(changes)
    return Cell(config=config, plan=plan_run(config, vocab_size=256, unique_tokens=None))


def test_an_assumed_speed_is_flops_over_peak_times_mfu_and_billed_by_hand(make):
    assumed = {"runtime.peak_tflops": 2e-3, "bill.assumed_mfu": 0.5}
    bill = {"bill.device_watts": 500.0, "bill.pue": 1.2, "bill.price_per_hour": 3.0}
    cell = planned(make, **assumed, **bill, **{"bill.region": "FRA"})
    found = plan.estimate(cell, assumed_speed(cell.config)).facts()
    assert found["seconds"] == pytest.approx(cell.plan.flops["full_attention"] / 1e9)
    hours = found["seconds"] / 3600
    assert found["kwh"] == pytest.approx(0.5 * 1.2 * hours)
    assert found["co2e_kg"] == pytest.approx(0.5 * 1.2 * hours * 0.056)
    assert found["money"] == pytest.approx(3.0 * hours)
    assert found["memory_gb"] == memory_bytes(cell.config, cell.plan).total / 1e9


def test_a_speed_learnt_from_real_runs_is_theirs(make, text_files, tiny_corpus_dir, tmp_path):
    data = {"data.paths": [str(text_files)], "data.root": str(tiny_corpus_dir.parent)}
    corpus = open_corpus(tiny_corpus_dir)
    records = [
        train(make(data | {"runs_root": str(tmp_path), "seed": seed}), corpus) for seed in range(3)
    ]
    cell = planned(make)
    speed = learn_speed(find_records(tmp_path), cell.config.runtime)
    found = plan.estimate(cell, speed)
    measured = sorted(sum(record.seconds.values()) for record in records)
    assert measured[0] * 0.5 < found.seconds < measured[-1] * 2.0
    watts = 1000 * found.bill.kwh / (found.seconds / 3600)
    assert watts == pytest.approx(CPU_WATTS_PER_THREAD)
    assert found.bill.estimated


def test_csv_and_json_hold_the_same_cells_and_the_picture_is_drawn(capsys, tmp_path):
    rest = [*SWEEP, f"runs_root={tmp_path}", f"data.root={tmp_path}"]
    plan.main([*rest, "format=json", f"picture={tmp_path / 'plan.svg'}"])
    listed = json.loads(capsys.readouterr().out)
    plan.main([*rest, "format=csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(listed) == len(rows) == 18
    for fact, row in zip(listed, rows, strict=True):
        assert row["run_id"] == fact["run_id"]
        assert float(row["flops"]) == fact["flops"] == pytest.approx(fact["budget"], rel=5e-3)
        assert fact["seconds"] is None  # nothing has run here, and nothing is invented
    assert (tmp_path / "plan.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert not (tmp_path / "plan.png").exists()
    plan.main(rest)
    printed = capsys.readouterr().out
    assert "18 cells, 0 refused" in printed
    assert "time and cost unknown" in printed


def seen(capsys, monkeypatch, width, *overrides):
    """Return the lines of the plan on a terminal of `width` columns."""
    file = io.StringIO()
    terminal = Console(
        file=file, width=width, force_terminal=True, color_system=None, soft_wrap=True, markup=False
    )
    monkeypatch.setattr(plan, "open_console", lambda: terminal)
    plan.main(list(overrides))
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 140])
def test_a_terminal_sees_whole_numbers_and_what_has_no_room_is_named(
    capsys, monkeypatch, tmp_path, width
):
    rest = (*SWEEP, f"runs_root={tmp_path}", f"data.root={tmp_path}")
    lines = seen(capsys, monkeypatch, width, *rest)
    assert max(map(len, lines)) <= width
    assert not [line for line in lines if "…" in line]
    assert all(title in lines[0].split() for title in ("budget", "N", "D", "D/N", "seconds"))
    text = " ".join(lines)
    assert ("format=csv has every column" in text) == (width == 80)
    for title in ("epochs", "steps", "batch", "lr", "FLOPs", "off", "GB"):
        assert title in lines[0].split() or f" {title}," in text or f" {title};" in text


def test_seeds_that_share_a_reason_are_refused_in_one_line(capsys, tmp_path):
    few = ("sweep.budgets=[3e10]", "sweep.seeds=[2,0,1]", "budget.min_steps=1000000")
    plan.main(["sweep=demo", *few, f"runs_root={tmp_path}", f"data.root={tmp_path}"])
    lines = capsys.readouterr().out.splitlines()
    refused = [line for line in lines if line.startswith("refused: ")]
    assert len(refused) == len(set(refused)) == 6  # of 18 cells
    assert all(" seeds 0, 1, 2: budget.flops=3e+10 buys " in line for line in refused)
    assert lines[6].startswith("0 cells, 18 refused")


def test_a_run_that_was_given_tokens_says_so_in_place_of_a_budget(capsys, tmp_path):
    tokens = ("budget.flops=null", "budget.n_tokens=100000")
    plan.main(["model=w32d2", *tokens, f"runs_root={tmp_path}", f"data.root={tmp_path}"])
    printed = capsys.readouterr().out
    assert printed.splitlines()[1].split()[0] == "D=1e+05"
    assert "\n1 cell, 0 refused" in printed


@pytest.mark.parametrize("form", ["csv", "json"])
def test_energy_that_is_planned_is_called_estimated_in_every_form(capsys, tmp_path, form):
    speed = ("runtime.peak_tflops=2e-3", "bill.assumed_mfu=0.5", "bill.device_watts=100")
    plan.main([*SWEEP, *speed, f"runs_root={tmp_path}", f"data.root={tmp_path}", f"format={form}"])
    text = capsys.readouterr().out
    cells = json.loads(text) if form == "json" else list(csv.DictReader(io.StringIO(text)))
    assert all(float(cell["kwh"]) > 0 for cell in cells)
    assert {cell["energy"] for cell in cells} == {"estimated"}


@pytest.mark.parametrize("item", ["format=xml", "picture=plan.pdf"])
def test_a_form_that_does_not_exist_is_refused_before_anything_is_composed(item):
    with pytest.raises(ConfigError, match=item.partition("=")[0]):
        plan.main(["sweep=nonesuch", item])
