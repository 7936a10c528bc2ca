"""Sweeps that are killed, that fail, that two drivers share: every cell is done exactly once."""

import json
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from llmtrain.corpus.shards import open_corpus
from llmtrain.spec.rundir import run_directory
from llmtrain.sweep.drain import write_cells
from llmtrain.sweep.ledger import read_sweep, reopen
from llmtrain.training.loop import train

DRIVER = Path(__file__).with_name("faulty_driver.py")
RAISE, EXIT, SEGFAULT, HANG, NAN = range(100, 105)
BATCH = 256


@pytest.fixture
def cell(make, text_files, tiny_corpus_dir, tmp_path):
    """Return a function that makes a tiny cell which logs every step."""

    def make_cell(seed, n_steps, **changes):
        return make(
            {
                "seed": seed,
                "runs_root": str(tmp_path / "runs"),
                "data.paths": [str(text_files)],
                "data.root": str(tiny_corpus_dir.parent),
                "data.max_epochs": 1e6,
                "model.d_model": 16,
                "model.n_layers": 1,
                "recipe.batch_tokens": BATCH,
                "budget.n_tokens": n_steps * BATCH,
                "tracking.points": 10_000,
            }
            | changes
        )

    return make_cell


@pytest.fixture
def start(start_in_group):
    """Return a function that starts a driver."""
    return lambda cells, hang_s=60: start_in_group(DRIVER, cells, hang_s)


def finish(process):
    out, error = process.communicate(timeout=280)
    return process.returncode, out, error


def steps_done(cells):
    log = cells.with_name("steps.log")
    return Counter(log.read_text().split()[::2]) if log.is_file() else Counter()


def is_at_work(process, cells):
    """Return whether a worker of this very driver has made a step."""
    log = cells.with_name("steps.log")
    return log.is_file() and f" {process.pid}\n" in log.read_text()


def losses(config):
    """Return the loss of every step, each logged once and in order, and the final one."""
    lines = (run_directory(config) / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows if "train/loss" in row] == list(
        range(1, rows[-1]["step"] + 1)
    )
    return [row["train/loss"] for row in rows if "train/loss" in row] + [rows[-1]["val/loss"]]


def stamps(configs):
    """Return what changes when a record is written again."""
    paths = (run_directory(config) / "record.json" for config in configs)
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in paths if p.is_file()}


@pytest.mark.slow
def test_two_drivers_at_once_run_no_cell_twice(cell, start):
    configs = [cell(seed, 20) for seed in range(16)]
    cells = write_cells(configs)
    results = [finish(process) for process in [start(cells), start(cells)]]
    assert [code for code, _, _ in results] == [0, 0], results
    per_cell = steps_done(cells)
    assert per_cell == {run_directory(c).name: 20 + 1 for c in configs}  # the last is evaluation


@pytest.mark.slow
def test_five_cells_that_fail_in_five_ways_are_named_and_the_other_55_finish(cell, start):
    good = [cell(seed, 5) for seed in range(55)]
    bad = [cell(seed, 5) for seed in (RAISE, EXIT, SEGFAULT, HANG)]
    bad.append(cell(NAN, 20, **{"recipe.peak_lr": 1e30}))
    cells = write_cells([*bad, *good])
    code, _, error = finish(start(cells, hang_s=10))
    assert code == 1, error
    found = {status.run_id: status for status in read_sweep(cells.parent)}
    assert Counter(status.state for status in found.values()) == {"done": 55, "failed": 5}
    raised, left, crashed, hung, diverged = (found[run_directory(c).name].reason for c in bad)
    assert raised == "ValueError: as asked"
    assert left == "the worker left with code 137"
    assert crashed == "the worker was killed by SIGSEGV"
    assert hung == "no step for hang_seconds=10; stack.txt says where it stood"
    assert "lower recipe.lr_multiplier" in diverged
    assert "in work" in (run_directory(bad[3]) / "stack.txt").read_text()  # where it slept
    assert "string_at" in (run_directory(bad[2]) / "stack.txt").read_text()

    before = stamps(good)
    assert finish(start(cells, hang_s=10))[0] == 1
    states = Counter(status.state for status in read_sweep(cells.parent))
    assert states == {"done": 55, "quarantined": 5}  # the same again
    assert stamps(good) == before

    code, out, _ = finish(start(cells, hang_s=10))
    assert (code, out) == (1, "")  # passed by, and still not a sweep that is whole
    reopen(bad[4:], quarantined=True)
    code, out, _ = finish(start(cells, hang_s=10))
    assert out.count("\n") == 1
    assert run_directory(bad[4]).name in out


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_sixty_cells_survive_thirty_kills_of_the_driver(cell, start, tmp_path, tiny_corpus_dir):
    configs = [cell(seed, 100) for seed in range(60)]
    cells = write_cells(configs)
    rng = random.Random(0)
    start_s, written, struck = 3.0, {}, 0
    for i in range(30):
        begin, process = time.monotonic(), start(cells)
        if i % 2:  # while the driver and its workers start
            time.sleep(rng.uniform(0.0, start_s))
        else:  # in the midst of the work
            while not is_at_work(process, cells) and process.poll() is None:
                time.sleep(0.02)
            start_s = time.monotonic() - begin
            time.sleep(rng.uniform(0.0, 0.5))
        struck += is_at_work(process, cells) and process.poll() is None
        process.kill()  # the driver alone: its workers have to find out themselves
        now = stamps(configs)
        assert written.items() <= now.items()  # no record is written a second time
        written = now
    assert struck > 5  # kills in the midst of the work
    code, _, error = finish(start(cells))
    assert code == 0, error
    assert written.items() <= stamps(configs).items()
    done = steps_done(cells)
    whole = [cell(c.seed, 100, **{"runs_root": str(tmp_path / "whole")}) for c in configs]
    for config, uninterrupted in zip(configs, whole, strict=True):
        train(uninterrupted, open_corpus(tiny_corpus_dir))
        assert losses(config) == losses(uninterrupted)  # bit for bit
        assert done[run_directory(config).name] >= 100 + 1
    assert finish(start(cells))[:2] == (0, "")
    assert steps_done(cells) == done  # nothing was left to do
    again = done.total() - 60 * 101
    print(f"{struck} kills struck work; {again} of {done.total()} steps were done again")
    assert again <= 2 * 101  # all else was saved; a cell may be struck before it can save
