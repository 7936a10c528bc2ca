"""The losses of a short run as last accepted: what a refactoring must not move.

`LLMTRAIN_REGENERATE=1 pytest tests/training/test_golden.py` writes them anew, for a change that
means to move them; the commit then says why. On one machine they are bitwise equal; between
processors the last digits differ, hence the tolerance.
"""

import json
import os
from pathlib import Path

import pytest
from setups import GPT2

from llmtrain.corpus.shards import open_corpus
from llmtrain.spec.rundir import run_directory
from llmtrain.training.loop import train

GOLDEN = Path(__file__).parent / "golden" / "losses.json"
VARIANTS = {
    "default": {},
    "length_warmup": {
        "seq_len.pacing": "linear",
        "seq_len.warmup_fraction": 0.5,
        "budget.tolerance": 0.05,
    },
    "gpt2_like": GPT2,
    "muon_wsd": {"optimizer.name": "muon", "schedule.name": "wsd"},
}


def losses(make, corpus, root, changes):
    config = make({"runs_root": str(root), "tracking.points": 1000} | changes)
    record = train(config, corpus)
    lines = (run_directory(config) / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row["train/loss"] for row in rows if "train/loss" in row] + [record.val_loss]


def test_losses_are_the_accepted_ones(make, tiny_corpus_dir, tmp_path):
    corpus = open_corpus(tiny_corpus_dir)
    found = {name: losses(make, corpus, tmp_path, change) for name, change in VARIANTS.items()}
    if os.environ.get("LLMTRAIN_REGENERATE"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    accepted = json.loads(GOLDEN.read_text())
    assert accepted.keys() == found.keys()
    for name, values in found.items():
        assert values == pytest.approx(accepted[name], rel=2e-4), name
