"""What plan.py says of memory, time, energy and money before anything is trained."""

import csv
import io
import json

import plan
import pytest

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


@pytest.mark.parametrize("item", ["format=xml", "picture=plan.pdf"])
def test_a_form_that_does_not_exist_is_refused_before_anything_is_composed(item):
    with pytest.raises(ConfigError, match=item.partition("=")[0]):
        plan.main(["sweep=nonesuch", item])
