"""A sweep with a process that compiles ahead: torch's cache has what its cells need."""

import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from llmtrain.spec.build import build
from llmtrain.spec.compile_cache import INDUCTOR, TRITON
from llmtrain.spec.rundir import run_directory
from llmtrain.spec.settings import TrainConfig
from llmtrain.sweep.ahead import Ahead
from llmtrain.sweep.drain import SweepWatcher, cell_pool, drain
from llmtrain.sweep.pool import ahead_slots, make_slots
from llmtrain.training import worker

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"),
]
DONE = "ahead.txt"


def cells_of(payload):
    return [build(TrainConfig, raw) for raw in payload.get("stack") or [payload["config"]]]


def work(payload, report):
    """Train, the first cell once the other process has compiled for the second; count hits."""
    from torch._dynamo.utils import counters  # noqa: PLC0415 - in the worker alone

    config = cells_of(payload)[0]
    if config.seed == 0 and os.environ.get("WAIT_AHEAD"):
        while not Path(config.runs_root, DONE).is_file():
            time.sleep(0.1)
    counters.clear()
    result = worker.work(payload, report)
    names = ("fxgraph_cache_hit", "fxgraph_cache_miss")
    found = {name: counters["inductor"][name] for name in names}
    names = ("autograd_cache_hit", "autograd_cache_miss", "autograd_cache_bypass")
    found |= {name: counters["aot_autograd"][name] for name in names}
    Path(config.runs_root, f"counts-{config.seed}.json").write_text(json.dumps(found))
    return result


def compile_cell(payload, report):
    """Compile, see that no run's folder came of it, and say so."""
    worker.compile_cell(payload, report)
    for config in cells_of(payload):
        assert not run_directory(config).exists()
    Path(cells_of(payload)[0].runs_root, DONE).touch()
    return {}


def sweep(configs, *, n_ahead):
    """Run the cells one after another; return their losses and counts by seed."""
    told, slots = [], make_slots(1)[:1]
    root = Path(configs[0].runs_root)
    ahead = Ahead(ahead_slots(n_ahead, slots), compile_cell, tell=told.append)
    root.mkdir()
    with cell_pool(work, slots, ahead=ahead) as pool:
        ended = drain(configs, pool, SweepWatcher())
    assert [outcome.error for outcome in ended] == [None] * len(configs)
    assert told == []
    rows = [(run_directory(config) / "metrics.jsonl").read_text() for config in configs]
    losses = [[json.loads(row).get("train/loss") for row in each.splitlines()] for each in rows]
    counts = {path.stem: json.loads(path.read_text()) for path in root.glob("counts-*.json")}
    return losses, counts


@pytest.mark.parametrize("stack", [1, 2])
def test_cells_find_all_their_graphs_compiled_and_train_the_same(
    make, text_files, tiny_corpus_dir, tmp_path, monkeypatch, stack
):
    def cells(folder):
        data = {"data.paths": [str(text_files)], "data.root": str(tiny_corpus_dir.parent)}
        common = {"runs_root": str(tmp_path / folder), "runtime.compile": True} | data
        shapes = [(0, 32, 5120), (1, 48, 2560)] + [(2, 48, 2560)] * (stack - 1)  # longest first
        return [
            make(
                common
                | {"seed": seed, "model.d_model": width, "budget.n_tokens": n_tokens}
                | {"runtime.stack": stack}
            )
            for seed, width, n_tokens in shapes
        ]

    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.delenv(TRITON, raising=False)
    monkeypatch.setenv(INDUCTOR, str(tmp_path / "alone-cache"))
    alone, cold = sweep(cells("alone"), n_ahead=0)
    monkeypatch.setenv("WAIT_AHEAD", "1")
    monkeypatch.setenv(INDUCTOR, str(tmp_path / "cache"))
    helped, warm = sweep(cells("helped"), n_ahead=1)
    assert helped == alone
    none = {"fxgraph_cache_miss": 0, "autograd_cache_miss": 0, "autograd_cache_bypass": 0}
    assert warm["counts-1"].items() >= none.items()
    assert warm["counts-1"]["autograd_cache_hit"] == 2  # training and evaluation
    assert cold["counts-1"]["autograd_cache_miss"] == 2
    assert warm["counts-0"] == cold["counts-0"]  # that cell had started
    left = {path.name for path in (tmp_path / "tmp").glob("*/*")}
    assert left <= {"precompiled_headers"}  # torch has them there, whatever the cache
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"tmp", "alone", "alone-cache", "helped", "cache"}
    assert {path.name for path in (tmp_path / "helped").iterdir()} == {
        "test", DONE, *(f"{name}.json" for name in warm)
    }  # fmt: skip
