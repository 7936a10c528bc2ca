"""metrics.jsonl is the truth; wandb is a copy that may fail without harm."""

import json
import subprocess
import sys

import pytest

from llmtrain.board import mirror
from llmtrain.corpus.shards import open_corpus
from llmtrain.spec.bill import bill_of
from llmtrain.spec.errors import DivergedError
from llmtrain.spec.rundir import read_spent, run_directory
from llmtrain.training.loop import train
from llmtrain.training.tracking import MetricsFile


def test_rows_are_appended_and_cut_back_to_what_a_checkpoint_saw(tmp_path):
    first = MetricsFile(tmp_path, length=0)
    first.write({"step": 1, "tokens": 10})
    kept = first.length()
    first.write({"step": 2, "tokens": 20})
    first.close()
    second = MetricsFile(tmp_path, length=kept)
    second.write({"step": 2, "tokens": 20})
    second.write({"step": 3, "tokens": 30})
    second.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


def test_a_row_that_is_no_number_is_refused(tmp_path):
    metrics = MetricsFile(tmp_path, length=0)
    with pytest.raises(ValueError, match="not JSON compliant"):
        metrics.write({"train/loss": float("nan")})
    metrics.close()


def finish(make, corpus_dir, root, changes):
    config = make({"runs_root": str(root)} | changes)
    record = train(config, open_corpus(corpus_dir))
    return record, run_directory(config)


def offline_records(directory):
    """Return the records of the run's offline file, by wandb's own reader."""
    (path,) = directory.glob("wandb/offline-run-*/run-*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def summary_of(found):
    summaries = [r["summary"]["update"] for r in found if r["type"] == "summary"]
    return {k: v for update in summaries for k, v in update.items()}


def test_a_failed_run_says_what_it_has_used(make, tiny_corpus_dir, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    wild = {"recipe.peak_lr": 1e30, "optimizer.grad_clip": None, "tracking.wandb": "auto"}
    with pytest.raises(DivergedError):
        finish(make, tiny_corpus_dir, tmp_path, wild)
    (directory,) = (tmp_path / "test").iterdir()
    summary, spent = summary_of(offline_records(directory)), read_spent(directory)
    assert summary["seconds/train"] == spent.seconds["train"]
    assert summary["energy_j"] == spent.energy_j
    assert summary["bill/kwh"] == bill_of(spent, make({}).bill).kwh
    assert "val_loss" not in summary


def test_an_offline_run_holds_the_same_rows(make, tiny_corpus_dir, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for name in ("TIMEOUT_S", "LOCAL_S", "FINISH_S"):  # a crowded machine starts wandb slowly
        monkeypatch.setattr(mirror, name, 120)
    monkeypatch.setenv("CANARY_SECRET", "canary-7d1f")
    changes = {"tracking.wandb": "auto"}
    record, directory = finish(make, tiny_corpus_dir, tmp_path, changes)
    found = offline_records(directory)
    history = [r["history"]["item"] for r in found if r["type"] == "history"]
    by_step: dict[int, dict[str, float]] = {}
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        by_step.setdefault(row["step"], {}).update(row)
    copied = [{k: v for k, v in row.items() if not k.startswith("_")} for row in history]
    assert copied == [pytest.approx(row) for row in by_step.values()]
    run = next(r["run"] for r in found if r["type"] == "run")
    assert run["run_group"] == "test"
    assert run["job_type"] == "train"
    assert {"D5.12e3", "w32d2", "s0", "fixed", "cosine", "adamw", "tiny"} == set(run["tags"])
    assert run["display_name"] == directory.name.rpartition("-")[0]
    assert by_step[record.n_steps]["val/loss"] == record.val_loss
    config = run["config"]["update"]
    assert config["model/d_model"] == 32
    assert config["plan/hyper/peak_lr"] == 0.01
    summary = summary_of(found)
    assert summary["val_loss"] == record.val_loss
    assert summary["val_bpb"] == record.val_bpb
    for kind in ("params", "flops"):
        for name, value in getattr(record, kind).items():
            assert summary[f"{kind}/{name}"] == value
    assert {"mfu", "energy_j", "energy_source", "seconds/train", "n_tokens"} <= set(summary)
    bill = bill_of(record, make({}).bill)
    assert summary["bill/kwh"] == bill.kwh
    assert summary["bill/co2e_kg"] == bill.co2e_kg
    assert summary["bill/source"] == summary["energy_source"] == record.energy_source
    assert summary["bill/joules_per_token"] == record.energy_j / record.n_tokens
    assert "canary-7d1f" not in json.dumps(found)
