"""An adaptive sweep on disk, with training replaced by a law: restarts, failures, other goals."""

import contextlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from simulator import write_planted_record

from llmtrain.scaling.law import LossLaw
from llmtrain.spec import disk
from llmtrain.spec.build import build
from llmtrain.spec.errors import ConfigError, InterruptedRunError, MismatchError
from llmtrain.spec.expense import ROUNDS_FILE
from llmtrain.spec.sweeps import SweepConfig
from llmtrain.sweep.ledger import read_sweep
from llmtrain.sweep.rounds import AdaptiveSweep

LAW = LossLaw(E=0.9, A=60.0, B=90.0, alpha=0.38, beta=0.33)
SWEEP = {
    "name": "rounds", "budgets": [1e11, 2e11, 4e11], "widths": [8, 16, 24, 32, 48, 64, 96],
    "depths": [1, 2, 3], "n_heads": 1, "aspect_min": 4, "aspect_max": 64, "sizes_per_budget": 5,
    "span": 4.0, "optimum_flops": 1e11, "optimum_params": 1.5e4, "optimum_exponent": 0.5,
    "seeds": [0], "branching": False, "mode": "adaptive", "law": None,
    "lr_min": None, "lr_max": None,
    "adaptive": {
        "method": "approach2", "first_sizes": 4, "cells_per_round": 3, "width": 0.15,
        "forecast_sd": None, "forecast_flops": None, "max_flops": None, "max_rounds": 30,
    },
    "bracket": {"budgets": [], "factors": [0.5, 1.0, 2.0], "arm": 2.0},
}  # fmt: skip
RULE = {
    "recipe.name": "demo",
    "recipe.peak_lr": None,
    "recipe.batch_tokens": None,
    "recipe.warmup_tokens": None,
    "data.max_epochs": 1e6,
}


class Trainer:
    """Writes the records of cells; stops or fails where it is told to."""

    def __init__(self, stop_after=None, fail=()):
        self.trained, self.stop_after, self.fail = [], stop_after, fail
        self.lines = []

    def __call__(self, cells):
        failures = {}
        for cell in cells:
            if len(self.trained) == self.stop_after:
                raise InterruptedRunError("stopped")
            self.trained.append(cell.run_id)
            if len(self.trained) in self.fail:
                failures[cell.run_id] = "loss nan"
            else:
                write_planted_record(cell, LAW, 0.004)
        return failures


@pytest.fixture
def adaptive(make, tmp_path):
    """A function that makes the sweep under a root of its own."""

    def make_sweep(root, **changes):
        base = make(RULE | {"runs_root": str(tmp_path / root)})
        raw = SWEEP | {"adaptive": SWEEP["adaptive"] | changes}
        return AdaptiveSweep(base, build(SweepConfig, raw), unique_tokens=10**6)

    return make_sweep


def rounds_of(sweep):
    return json.loads((sweep.directory / ROUNDS_FILE).read_text())


def test_a_stopped_sweep_decides_what_it_would_have_decided(adaptive):
    whole, broken = adaptive("whole"), adaptive("broken")
    trainer = Trainer()
    assert whole.run(trainer, trainer.lines.append) == {}
    assert rounds_of(whole)["stopped"]["reason"].startswith("precision")
    assert len(trainer.lines) == len(rounds_of(whole)["rounds"]) + 1
    total = []
    for stop_after in (3, 7, 2, None):
        again = Trainer(stop_after=stop_after)
        try:
            adaptive("broken").run(again, again.lines.append)
        except InterruptedRunError:
            assert stop_after is not None
        total += again.trained
    assert rounds_of(broken) == rounds_of(whole)
    assert total == trainer.trained  # the same cells in the same order, none twice
    idle = Trainer()
    adaptive("broken").run(idle, idle.lines.append)
    assert idle.trained == []


def test_every_cell_stands_in_the_plan_with_its_reason(adaptive):
    sweep = adaptive("plan")
    trainer = Trainer()
    sweep.run(trainer, trainer.lines.append)
    cells = [cell for entry in rounds_of(sweep)["rounds"] for cell in entry["cells"]]
    assert [cell["run_id"] for cell in cells] == trainer.trained
    assert all(cell["reason"] for cell in cells)
    assert {status.run_id for status in read_sweep(sweep.directory)} == set(trainer.trained)


def test_a_failed_cell_is_reported_and_passed_by(adaptive):
    sweep = adaptive("fail")
    trainer = Trainer(fail=(5,))
    failures = sweep.run(trainer, trainer.lines.append)
    assert list(failures) == [trainer.trained[4]]
    assert rounds_of(sweep)["stopped"]["reason"].startswith("precision")
    assert trainer.trained.count(trainer.trained[4]) == 1


def test_cells_on_a_cluster_are_waited_for_by_running_again(adaptive):
    sweep, lines = adaptive("slurm"), []
    handed = []

    def submit(cells):
        handed.extend(cells)
        return {}

    assert sweep.run(submit, lines.append) == {}
    assert "8 cells still to come; run the same command" in lines[-1]
    for cell in handed:
        write_planted_record(cell, LAW, 0.004)
    trainer = Trainer()
    sweep.run(trainer, lines.append)
    assert trainer.trained
    assert not set(trainer.trained) & {cell.run_id for cell in handed}


def test_a_tighter_goal_goes_on_and_another_model_is_refused(adaptive, make, tmp_path):
    trainer = Trainer()
    adaptive("goal").run(trainer, trainer.lines.append)
    before = len(trainer.trained)
    adaptive("goal", width=0.03).run(trainer, trainer.lines.append)
    assert len(trainer.trained) > before
    base = make(RULE | {"runs_root": str(tmp_path / "goal"), "model.activation": "gelu"})
    other = AdaptiveSweep(base, build(SweepConfig, SWEEP), unique_tokens=10**6)
    with pytest.raises(MismatchError, match="does not make; give the new sweep another"):
        other.run(trainer, trainer.lines.append)


def test_drivers_that_decide_at_once_write_one_after_the_other(adaptive, monkeypatch):
    """As two that waited for the last cell of a round do."""
    both = threading.Barrier(2, timeout=2.0)

    def sync(path, plain=disk.sync):
        plain(path)
        if ROUNDS_FILE in path.name:
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait()

    def drive(sweep):
        return sweep.run(lambda _cells: {}, [].append)

    monkeypatch.setattr(disk, "sync", sync)
    sweeps = [adaptive("both"), adaptive("both")]
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(drive, sweeps)) == [{}, {}]
    assert len(rounds_of(sweeps[0])["rounds"]) == 1


def test_rounds_are_bounded(adaptive):
    trainer = Trainer()
    sweep = adaptive("few", max_rounds=2, width=1e-6)
    sweep.run(trainer, trainer.lines.append)
    assert "max_rounds=2 is reached" in rounds_of(sweep)["stopped"]["reason"]
    assert len(trainer.trained) == 12


def test_a_family_without_a_trainable_cell_is_refused_before_any_file(make, tmp_path):
    base = make(RULE | {"runs_root": str(tmp_path / "none"), "runtime.memory_gb": 1e-4})
    sweep = AdaptiveSweep(base, build(SweepConfig, SWEEP), unique_tokens=None)
    with pytest.raises(ConfigError, match=r"no cell can be trained: w\d+d\d+ needs"):
        sweep.first_round()
    assert not sweep.directory.exists()
