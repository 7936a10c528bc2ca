"""Processes that drain one file of cells together, as the tasks of a SLURM array do."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import sys
import time

import pytest
from processes import LIMIT_S, wait_for

from llmtrain.corpus.shards import open_corpus
from llmtrain.spec.branching import share_trunk
from llmtrain.spec.errors import ConfigError, RunLockedError
from llmtrain.spec.plan import plan_run, run_id
from llmtrain.spec.rundir import (
    hold,
    read_spent,
    read_state,
    run_directory,
    write_json,
    write_state,
)
from llmtrain.sweep import drain, slurm
from llmtrain.sweep.drain import SweepWatcher, read_cells, take, write_cells
from llmtrain.sweep.grid import Cell
from llmtrain.sweep.ledger import is_done, release_branches, reopen
from llmtrain.sweep.pool import make_slots
from llmtrain.sweep.select import with_trunks
from llmtrain.training import worker
from llmtrain.training.loop import train

LONG = 307_200  # tokens, for seconds: long enough to be stopped on the way


@pytest.fixture
def cell(make, text_files, tiny_corpus_dir, tmp_path):
    """Return a function that makes a cell of a sweep in this test's folder."""

    def make_cell(seed: int, **changes):
        data = {"data.paths": [str(text_files)], "data.root": str(tiny_corpus_dir.parent)}
        return make({"seed": seed, "runs_root": str(tmp_path / "runs")} | data | changes)

    return make_cell


@pytest.fixture
def start(root, start_in_group):
    """Return a function that starts a drain with one worker."""

    def run(cells, task=0):
        one_core = {"SLURM_CPUS_PER_TASK": "1", "SLURM_ARRAY_TASK_ID": str(task)}
        return start_in_group(root / "scripts/drain.py", f"cells={cells}", **one_core)

    return run


def finish(process):
    out, error = process.communicate(timeout=2 * LIMIT_S)
    return process.returncode, out, error


def in_training(config):
    path = run_directory(config) / "metrics.jsonl"
    return path.is_file() and path.stat().st_size > 0


def loss(config):
    return json.loads((run_directory(config) / "record.json").read_text())["val_loss"]


def test_two_drains_train_no_cell_twice_and_a_failing_cell_stops_none(cell, start):
    good = [cell(seed, **{"budget.n_tokens": 10_240}) for seed in range(5)]
    bad = cell(9, **{"recipe.peak_lr": 1e30, "budget.n_tokens": 20_480})  # longest: taken first
    path = write_cells([*good, bad])
    results = [finish(process) for process in [start(path, 0), start(path, 1)]]
    output = "".join(out for _, out, _ in results)
    trained = re.findall(r"^\[\d/\d\] (\S+) +N", output, re.MULTILINE)
    assert sorted(trained) == sorted(run_directory(config).name for config in good), results
    assert len(re.findall(rf"{run_directory(bad).name} +FAILED: step ", output)) == 1
    assert sorted(code for code, _, _ in results) == [0, 1]  # who met the failure says so
    state, reason = read_state(run_directory(bad))
    assert state == "failed"
    assert "lower recipe.lr_multiplier" in reason

    code, out, _ = finish(start(path))
    assert (code, out.count("FAILED")) == (0, 0)  # left alone until the sweep is submitted again
    reopen(read_cells(path))
    assert finish(start(path))[1].count("FAILED") == 1


def test_a_stack_whose_cells_all_fail_before_the_first_step_says_why(cell):
    configs = [cell(seed, **{"runtime.stack": 2}) for seed in range(2)]
    for config in configs:
        run_directory(config).mkdir(parents=True)
        write_json(run_directory(config) / "config.json", {"data_id": "of other data"})
    payload = {"stack": [dataclasses.asdict(config) for config in configs]}
    ends = take(worker.work, payload, lambda _: None)["cells"]
    assert [ends[run_id(config)]["way"] for config in configs] == ["MismatchError"] * 2


def test_a_cell_that_fails_while_another_process_waits_for_its_lock_is_not_tried_there(
    cell, monkeypatch
):
    config = cell(0)
    directory, other = run_directory(config), contextlib.ExitStack()
    other.enter_context(hold(directory))

    def fail_there(_seconds):
        write_state(directory, "failed", "loss nan")
        other.close()

    monkeypatch.setattr(time, "sleep", fail_there)
    with pytest.raises(RunLockedError, match="has failed: loss nan"):
        take(worker.work, {"config": dataclasses.asdict(config)}, lambda _: None)
    assert read_state(directory) == ("failed", "loss nan")


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR2, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_the_group_saves_and_the_next_drain_ends_with_the_same_loss(
    number, cell, start, tmp_path, tiny_corpus_dir
):
    config = cell(0, **{"budget.n_tokens": LONG})
    path = write_cells([config])
    before = signal.signal(number, signal.SIG_DFL)  # nohup would hand HUP on, ignored
    process = start(path)
    signal.signal(number, before)
    wait_for(lambda: in_training(config))
    os.killpg(process.pid, number)
    code, _, error = finish(process)
    assert code == 75, error
    assert "Traceback" not in error
    assert read_state(run_directory(config))[0] == "stopped"
    assert list((run_directory(config) / "checkpoints").glob("step-*"))
    assert finish(start(path))[0] == 0
    whole = cell(0, **{"budget.n_tokens": LONG, "runs_root": str(tmp_path / "whole")})
    assert loss(config) == train(whole, open_corpus(tiny_corpus_dir)).val_loss


def test_a_cell_whose_worker_is_killed_is_failed_and_the_next_one_runs(cell, start):
    killed = cell(0, **{"budget.n_tokens": LONG})
    other = cell(1)
    process = start(write_cells([killed, other]))
    wait_for(lambda: in_training(killed))
    (worker,) = re.findall(r"process (\d+)", (run_directory(killed) / "lock").read_text())
    os.kill(int(worker), signal.SIGKILL)
    code, _, error = finish(process)
    assert code == 1, error
    assert read_state(run_directory(killed)) == ("failed", "the worker was killed by SIGKILL")
    assert read_spent(run_directory(killed)).seconds["undone"] > 0  # until it died
    assert loss(other) > 0


def family(cell):
    """Return a trunk that can be stopped on the way, and its two branches."""
    runs = []
    for n_tokens in (LONG, 30_720, 20_480):
        changes = {"budget.n_tokens": n_tokens, "schedule.name": "wsd"}
        config = cell(0, **changes)
        runs.append((config, plan_run(config, vocab_size=256, unique_tokens=None)))
    return [config for config, _ in share_trunk(runs, unique_tokens=None)[0]]


@pytest.mark.slow
def test_a_trunk_and_its_branches_survive_a_stop_and_are_shared_by_two_drains(
    cell, start, tmp_path, tiny_corpus_dir
):
    trunk, *branches = family(cell)
    path = write_cells([*branches, trunk])
    process = start(path)
    wait_for(lambda: in_training(trunk))
    os.killpg(process.pid, signal.SIGTERM)
    assert finish(process)[0] == 75
    results = [finish(process) for process in [start(path, 0), start(path, 1)]]
    output = "".join(out for _, out, _ in results)
    assert [code for code, _, _ in results] == [0, 0], results
    assert "FAILED" not in output
    trained = re.findall(r"^\[\d/\d\] (\S+) +N", output, re.MULTILINE)
    assert sorted(trained) == sorted(run_directory(c).name for c in (trunk, *branches))
    assert not (run_directory(trunk) / "branches").exists()  # all branches are done
    for branch in branches:
        record = json.loads((run_directory(branch) / "record.json").read_text())
        assert record["flops_spent"] < 0.25 * record["flops"]["full_attention"]
    checkpoint = dataclasses.replace(branches[0].checkpoint, branch_from=None)
    whole = dataclasses.replace(
        branches[0], checkpoint=checkpoint, runs_root=str(tmp_path / "whole")
    )
    assert loss(branches[0]) == train(whole, open_corpus(tiny_corpus_dir)).val_loss


def test_a_branch_is_left_to_who_trains_its_trunk_and_fails_with_it(cell, start):
    trunk, branch, _ = family(cell)
    path = write_cells([branch])
    with hold(run_directory(trunk)):
        code, out, error = finish(start(path))
    assert code == 0, error
    assert "0 cells in" in out  # none ended here
    assert read_state(run_directory(branch))[0] == "planned"
    write_state(run_directory(trunk), "failed", "loss nan")
    code, _, error = finish(start(path))
    assert code == 1
    assert "failed: loss nan" in error
    assert "failed: loss nan" in read_state(run_directory(branch))[1]


def test_the_states_of_a_trunk_stay_until_all_its_branches_are_done(cell):
    trunk, *branches = family(cell)
    kept = run_directory(trunk) / "branches"
    kept.mkdir(parents=True)
    for branch in branches:
        release_branches([trunk, *branches])
        assert kept.is_dir()
        run_directory(branch).mkdir()
        (run_directory(branch) / "record.json").touch()
    release_branches([trunk, *branches])
    assert kept.is_dir()  # a driver may still be at the trunk
    (run_directory(trunk) / "record.json").touch()
    release_branches([trunk, *branches])
    assert not kept.exists()


def test_states_stay_for_planned_branches_that_this_call_leaves_out(cell):
    trunk, first, second = family(cell)
    plan = {"cells": {run_id(c): {"trunk": run_id(trunk)} for c in (trunk, first, second)}}
    kept = run_directory(trunk) / "branches"
    kept.mkdir(parents=True)
    write_json(run_directory(trunk).parent / "sweep.json", plan)
    for done in (trunk, first):
        run_directory(done).mkdir(exist_ok=True)
        (run_directory(done) / "record.json").touch()
    release_branches([trunk, first])
    assert kept.is_dir()
    run_directory(second).mkdir()
    (run_directory(second) / "record.json").touch()
    release_branches([trunk, first])
    assert not kept.exists()


def test_a_branch_alone_fails_once_with_what_to_do(cell, start):
    """Without its trunk in the call it once came back for ever."""
    _, branch, _ = family(cell)
    code, _, error = finish(start(write_cells([branch])))
    assert code == 1
    assert "is not trained; train that one first" in error


def test_the_trunk_of_a_chosen_branch_is_chosen_too_until_it_is_done(cell):
    runs = family(cell)
    plans = [plan_run(config, vocab_size=256, unique_tokens=None) for config in runs]
    cells = [Cell(config=c, plan=p) for c, p in zip(runs, plans, strict=True)]
    assert with_trunks([cells[1]], cells) == cells[:2]
    run_directory(runs[0]).mkdir(parents=True)
    (run_directory(runs[0]) / "record.json").touch()
    assert with_trunks([cells[1]], cells) == [cells[1]]


def test_a_held_cell_is_left_to_its_holder(cell, start):
    held, free = cell(0), cell(1)
    with hold(run_directory(held)):
        code, out, error = finish(start(write_cells([held, free])))
    assert code == 0, error
    assert run_directory(held).name not in out
    assert loss(free) > 0
    assert not (run_directory(held) / "record.json").exists()


def test_a_cell_that_another_process_finishes_in_the_instant_of_the_start_is_not_passed_by(
    cell, monkeypatch
):
    config = cell(0)
    directory = run_directory(config)
    directory.mkdir(parents=True)
    opened = []

    class Heard(SweepWatcher):
        def opened(self, jobs, n_done, n_slots, folders):
            opened.append((len(jobs), n_done, len(folders)))

    def finished_after_the_look(path):
        found = is_done(path)
        (directory / "record.json").touch()
        return found

    monkeypatch.setattr(drain, "is_done", finished_after_the_look)
    with drain.cell_pool(worker.work, make_slots(1)) as pool:
        assert drain.drain([config], pool, Heard()) == []
    assert opened == [(1, 0, 1)]  # to train, done before, in all: none is left over


def test_a_file_of_cells_comes_back_as_it_was_and_is_named_by_its_cells(cell):
    cells = [cell(seed) for seed in range(3)]
    path = write_cells(cells)
    assert read_cells(path) == cells
    assert write_cells(cells[::-1]) == path
    assert write_cells(cells[:2]) != path
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(ConfigError, match="is no file of cells"):
        read_cells(path)


def test_only_failed_cells_are_reopened(cell):
    failed, stopped = cell(0), cell(1)
    for config, state in ((failed, "failed"), (stopped, "stopped")):
        run_directory(config).mkdir(parents=True)
        write_state(run_directory(config), state, "why")
    reopen([failed, stopped])
    assert read_state(run_directory(failed)) == ("planned", None)
    assert read_state(run_directory(stopped)) == ("stopped", "why")


def test_tasks_that_slurm_does_not_bind_share_out_the_cores(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    taken = []
    for task in range(4):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        taken += [slot.cores for slot in slurm.task_slots(per_device=1)]
    assert sorted(taken) == [(core,) for core in range(8)]


def test_without_submitit_or_slurm_the_launcher_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"no SLURM here: .*; use hydra/launcher=pool"):
        slurm.make_executor(tmp_path)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[slurm\]'"):
        slurm.make_executor(tmp_path)
