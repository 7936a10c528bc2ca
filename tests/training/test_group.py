"""Runs trained as one leave what each would have left alone."""

import json
import os
import signal

import pytest

from llmtrain.spec.errors import DivergedError, InterruptedRunError, RunLockedError
from llmtrain.spec.plan import run_id
from llmtrain.spec.record import RunRecord, read_record
from llmtrain.spec.rundir import hold, read_state, run_directory, write_state
from llmtrain.training import group, memory
from llmtrain.training.group import train_group
from llmtrain.training.loop import train
from llmtrain.training.memory import train_group_in_memory

RUNS = [{"seed": 0}, {"seed": 1}, {"seed": 1, "recipe.lr_multiplier": 0.3}]
CLOSE = 5e-6  # relative: the products of a stack are batched, in float32
TIMED = ("train/tokens_per_second", "train/memory_gb")


@pytest.fixture
def cells(make, tmp_path):
    """Return a function that makes the three cells in a folder."""

    def of(root, changes=None, runs=RUNS):
        common = {"runs_root": str(tmp_path / root), "tracking.points": 1000} | (changes or {})
        return [make(common | run) for run in runs]

    return of


def rows(config):
    lines = (run_directory(config) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMED} for line in lines]


def assert_same(found, expected):
    """Compare what two runs left: their records and every row of their metrics."""
    ours, theirs = (read_record(run_directory(config)) for config in (found, expected))
    assert ours.config_id == theirs.config_id
    assert ours.peak_lr == theirs.peak_lr
    assert ours.val_loss == pytest.approx(theirs.val_loss, rel=CLOSE)
    assert ours.train_loss == pytest.approx(theirs.train_loss, rel=CLOSE)
    assert read_state(run_directory(found)) == ("done", None)
    for a, b in zip(rows(found), rows(expected), strict=True):
        assert a.keys() == b.keys()
        assert a == pytest.approx(b, rel=100 * CLOSE)


def stop_at(step, number=signal.SIGTERM):
    def tell(_name, progress):
        if progress.step == step:
            os.kill(os.getpid(), number)

    return tell


@pytest.fixture
def alone(cells, corpus):
    """The three cells, each trained by itself."""
    made = cells("alone")
    for config in made:
        train(config, corpus)
    return made


def test_every_run_of_a_group_leaves_its_own_record(cells, corpus, alone):
    together = cells("together")
    told = []
    ends = train_group(together, corpus, on_progress=lambda name, p: told.append((name, p.step)))
    assert list(ends) == [run_id(config) for config in together]
    assert sorted(set(told)) == sorted((name, step + 1) for name in ends for step in range(20))
    for config, expected in zip(together, alone, strict=True):
        assert_same(config, expected)
        record = ends[run_id(config)]
        assert record == read_record(run_directory(config))
        assert record.hardware["stacked"] == "3"
        assert record.seconds["train"] > 0
    assert read_record(run_directory(alone[0])).hardware["stacked"] == "1"
    assert train_group(together, corpus) == {}  # all done before


def test_a_stopped_group_goes_on_together_or_alone(cells, corpus, alone):
    together = cells("together", {"checkpoint.every_steps": 4})
    for step in (3, 9):  # from nothing, and from a checkpoint
        ends = train_group(together, corpus, on_progress=stop_at(step))
        assert all(isinstance(end, InterruptedRunError) for end in ends.values())
        for config in together:
            assert read_state(run_directory(config))[0] == "stopped"
    assert train(together[1], corpus).hardware["stacked"] == "3"  # for a part of its steps
    ends = train_group(together, corpus)
    assert len(ends) == 2
    for config, expected in zip(together, alone, strict=True):
        assert_same(config, expected)


def test_one_that_was_stopped_earlier_catches_up(cells, corpus, alone):
    together = cells("together")
    for config, step in zip(together[:2], (4, 11), strict=True):
        tell = stop_at(step)
        with pytest.raises(InterruptedRunError):
            train(config, corpus, on_progress=lambda p, tell=tell: tell("", p))
    ends = train_group(together, corpus)
    for config, expected in zip(together, alone, strict=True):
        assert_same(config, expected)
        assert ends[run_id(config)].hardware["stacked"] == "3"


@pytest.mark.parametrize("lost", [1, 2])
def test_one_that_diverges_leaves_the_others_to_go_on(cells, corpus, alone, lost):
    sick = [{"seed": 7 + i, "recipe.lr_multiplier": 1e30} for i in range(lost)]
    together = cells("together", runs=[RUNS[0], *sick, *RUNS[lost:]])
    ends = train_group(together, corpus)
    for config in together[1 : 1 + lost]:
        assert isinstance(ends[run_id(config)], DivergedError)
        state, reason = read_state(run_directory(config))
        assert state == "failed"
        assert "lower recipe.lr_multiplier" in reason
    assert_same(together[0], alone[0])
    for config, expected in zip(together[1 + lost :], alone[lost:], strict=True):
        assert_same(config, expected)


def test_one_that_another_process_holds_is_left_to_it(cells, corpus, alone):
    together = cells("together")
    with hold(run_directory(together[0])):
        ends = train_group(together, corpus)
    assert isinstance(ends.pop(run_id(together[0])), RunLockedError)
    assert all(isinstance(end, RunRecord) for end in ends.values())
    assert_same(together[2], alone[2])


def test_one_that_failed_before_is_left_alone(cells, corpus, alone):
    together = cells("together")
    run_directory(together[0]).mkdir(parents=True)
    write_state(run_directory(together[0]), "failed", "loss nan")
    ends = train_group(together, corpus)
    assert "has failed: loss nan" in str(ends.pop(run_id(together[0])))
    assert all(isinstance(end, RunRecord) for end in ends.values())
    assert read_state(run_directory(together[0])) == ("failed", "loss nan")
    assert_same(together[2], alone[2])


def test_one_that_diverged_before_memory_ran_out_keeps_its_reason(
    cells, corpus, alone, monkeypatch
):
    class FullWithTwo(group.Stack):
        def train_step(self):
            if len(self.sessions) == 2:
                raise MemoryError
            super().train_step()

    monkeypatch.setattr(group, "Stack", FullWithTwo)
    monkeypatch.setattr(memory, "warn", lambda _: None)
    sick = {"seed": 7, "recipe.lr_multiplier": 1e30}
    together = cells("together", runs=[RUNS[0], sick, RUNS[2]])
    ends = train_group_in_memory(
        together, corpus, on_progress=lambda *_: None, on_step=lambda: None
    )
    assert isinstance(ends[run_id(together[1])], DivergedError)
    assert_same(together[0], alone[0])
    assert_same(together[2], alone[2])


def test_a_group_that_does_not_fit_is_trained_one_by_one(cells, corpus, alone, monkeypatch):
    class Full(group.Stack):
        def train_step(self):
            raise MemoryError

    monkeypatch.setattr(group, "Stack", Full)
    said = []
    monkeypatch.setattr(memory, "warn", said.append)
    together = cells("together")
    ends = train_group_in_memory(
        together, corpus, on_progress=lambda *_: None, on_step=lambda: None
    )
    assert said == ["out of memory with 3 runs as one; again, one after another"]
    for config, expected in zip(together, alone, strict=True):
        assert_same(config, expected)
        assert isinstance(ends[run_id(config)], RunRecord)
