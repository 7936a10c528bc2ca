"""R6, R7 in a sweep: a full disk ends it in one line and no cell is marked for it."""

import errno
import os
import shutil
import time
from pathlib import Path

import pytest
from processes import wait_for

from llmtrain.corpus.shards import open_corpus
from llmtrain.spec.build import build
from llmtrain.spec.errors import DiskError
from llmtrain.spec.rundir import read_state, run_directory
from llmtrain.spec.settings import TrainConfig
from llmtrain.sweep.drain import SweepWatcher, cell_pool, drain
from llmtrain.sweep.process import Slot
from llmtrain.training import worker
from llmtrain.training.loop import train

LONG = 20_480  # tokens
FULL = 9  # the seed of the cell that meets the full disk
SLOTS = [Slot(index=i, cores=(min(os.sched_getaffinity(0)),), gpu=None) for i in range(2)]


def work(payload, report):
    """Train, a second a step, or meet a full disk as any library may once the other is at it."""
    config = build(TrainConfig, payload["config"])
    under_way = Path(config.runs_root).with_name("under way")

    def slowly(progress):
        under_way.touch()
        report(progress)
        time.sleep(1.0)

    if config.seed == FULL:
        wait_for(under_way.is_file)
        raise OSError(errno.ENOSPC, "No space left on device", "/cache/kernel.so")
    return worker.work(payload, slowly)


@pytest.fixture
def cells(make, text_files, tiny_corpus_dir, tmp_path):
    """Three cells, of which the second longest meets the full disk."""
    data = {"data.paths": [str(text_files)], "data.root": str(tiny_corpus_dir.parent)}
    data["runs_root"] = str(tmp_path / "runs")
    lengths = {0: LONG, FULL: 10_240, 1: 5_120}
    changes = {"data.max_epochs": 1e6}
    return [make(data | changes | {"seed": s, "budget.n_tokens": n}) for s, n in lengths.items()]


class Counter(SweepWatcher):
    def __init__(self):
        self.n_started = 0

    def started(self, job):
        self.n_started += 1


@pytest.mark.slow
def test_a_full_disk_stops_the_sweep_and_marks_no_cell(cells, tiny_corpus_dir, tmp_path, make):
    watcher = Counter()
    with pytest.raises(DiskError) as caught, cell_pool(work, SLOTS) as pool:
        drain(cells, pool, watcher)
    name = run_directory(cells[1]).name
    assert str(caught.value) == (
        f"{name}: /cache/kernel.so: disk full; free space, then run the same command again"
    )
    assert watcher.n_started == 2
    assert [read_state(run_directory(c))[0] for c in cells] == ["stopped", "planned", "planned"]
    assert list(tmp_path.rglob("failures.json")) == []

    with cell_pool(worker.work, SLOTS) as pool:
        outcomes = drain(cells, pool, SweepWatcher())
    assert [outcome.error for outcome in outcomes] == [None] * 3
    elsewhere = make(
        {"runs_root": str(tmp_path / "whole"), "seed": 0, "data.max_epochs": 1e6}
        | {"budget.n_tokens": LONG}
    )
    losses = {outcome.job.name: outcome.result["val_loss"] for outcome in outcomes}
    whole = train(elsewhere, open_corpus(tiny_corpus_dir))
    assert losses[run_directory(cells[0]).name] == whole.val_loss


def test_a_sweep_without_room_for_its_cells_starts_none(cells, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=4_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    watcher = Counter()
    said = r"runs/test: disk too full: 4 MB free, less than 1\.5 times the \S+ MB that these 3 runs"
    with pytest.raises(DiskError, match=said), cell_pool(work, SLOTS) as pool:
        drain(cells, pool, watcher)
    assert watcher.n_started == 0
