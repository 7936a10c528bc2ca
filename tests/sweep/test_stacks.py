"""Cells that are trained as one: which, and what the sweep says of each."""

import pytest

from llmtrain.spec.plan import run_id
from llmtrain.spec.record import read_record
from llmtrain.spec.rundir import read_state, run_directory, write_json
from llmtrain.spec.stacking import stack_key
from llmtrain.sweep.drain import SweepWatcher, cell_job, cell_pool, drain
from llmtrain.sweep.ledger import FAILURES_FILE, reopen
from llmtrain.sweep.pool import make_slots
from llmtrain.sweep.process import Outcome, by_part
from llmtrain.sweep.stacks import stack_jobs
from llmtrain.training.worker import work


@pytest.fixture
def cell(make, text_files, tiny_corpus_dir, tmp_path):
    def make_cell(seed=0, **changes):
        data = {"data.paths": [str(text_files)], "data.root": str(tiny_corpus_dir.parent)}
        common = {"runs_root": str(tmp_path / "runs"), "runtime.stack": 2, "seed": seed}
        return make(common | data | changes)

    return make_cell


def names(configs):
    """Return which cells each job trains, as positions in `configs`."""
    position = {run_id(config): i for i, config in enumerate(configs)}
    jobs = stack_jobs({run_directory(c): cell_job(c) for c in configs}, configs)
    return sorted(sorted(position[part.name] for part in job.parts or (job,)) for job in jobs)


def test_cells_of_one_shape_are_joined_as_evenly_as_can_be(cell):
    rates = [{"recipe.lr_multiplier": rate} for rate in (0.5, 1.0, 2.0)]
    narrow = [cell(seed, **rate, **{"runtime.stack": 4}) for seed in (0, 1) for rate in rates]
    wide = [cell(seed, **{"model.d_model": 48, "runtime.stack": 4}) for seed in (0, 1)]
    assert names([*narrow, *wide]) == [[0, 2, 4], [1, 3, 5], [6, 7]]  # not 4 and 2
    assert names([cell(0), cell(1), cell(2)]) == [[0, 2], [1]]
    assert names([cell(seed, **{"runtime.stack": 1}) for seed in (0, 1)]) == [[0], [1]]


@pytest.mark.parametrize(
    "changes",
    [
        {"model.dropout": 0.1},
        {"schedule.name": "wsd", "checkpoint.branch_at": [3]},
        {"schedule.name": "wsd", "checkpoint.branch_from": "a-trunk"},
        {"runtime.parallel": "ddp"},
    ],
    ids=str,
)
def test_runs_that_stay_alone(cell, changes):
    assert stack_key(cell(0, **changes)) is None
    assert stack_key(cell(0)) == stack_key(cell(1, **{"recipe.lr_multiplier": 3.0}))
    assert stack_key(cell(0)) != stack_key(cell(0, **{"recipe.peak_lr": 0.02}))


def test_a_cell_that_failed_before_stays_alone(cell):
    configs = [cell(seed) for seed in range(3)]
    directory = run_directory(configs[0])
    directory.mkdir(parents=True)
    write_json(directory / FAILURES_FILE, [{"way": "died", "reason": "SIGKILL"}])
    assert names(configs) == [[0], [1, 2]]


def test_the_end_of_a_stack_is_the_end_of_every_part(cell):
    configs = [cell(seed) for seed in range(2)]
    (job,) = stack_jobs({run_directory(c): cell_job(c) for c in configs}, configs)
    assert job.cost == sum(part.cost for part in job.parts)
    died = by_part(Outcome(job=job, error="the worker was killed by SIGKILL", way="died"))
    assert [(o.job, o.way) for o in died] == [(part, "died") for part in job.parts]
    error = {"error": "loss nan", "way": "DivergedError", "exit_code": 1}
    cells = {job.parts[1].name: error}  # the first ended elsewhere
    (only,) = by_part(Outcome(job=job, result={"cells": cells}))
    assert (only.job, only.error, only.way, only.exit_code) == (job.parts[1], *error.values())


class Told(SweepWatcher):
    """Keeps what it hears."""

    def __init__(self):
        self.began, self.reports, self.ends = [], set(), {}

    def started(self, job):
        self.began.append(job.name)

    def reported(self, job, progress):
        assert progress["cell"] == job.name
        self.reports.add(job.name)

    def ended(self, outcome):
        self.ends[outcome.job.name] = outcome


def test_a_sweep_trains_its_stacks_and_says_of_each_cell_how_it_ended(cell):
    well = [cell(seed) for seed in range(3)]
    sick = cell(3, **{"recipe.lr_multiplier": 1e30})
    told, every = Told(), [*well, sick]
    with cell_pool(work, make_slots(1)[:1]) as pool:
        found = drain(every, pool, told)
    ids = [run_id(config) for config in every]
    assert sorted(told.began) == sorted(ids) == sorted(told.ends)
    assert told.reports >= set(ids[:3])
    assert len(found) == 4
    for config in well:
        record = read_record(run_directory(config))
        assert record.hardware["stacked"] == "2"
        assert told.ends[run_id(config)].result["val_loss"] == record.val_loss
    assert "lower recipe.lr_multiplier" in told.ends[ids[3]].error
    assert read_state(run_directory(sick))[0] == "failed"
    reopen(every)
    again = Told()
    with cell_pool(work, make_slots(1)[:1]) as pool:
        drain(every, pool, again)
    assert again.began == [ids[3]]
    assert read_state(run_directory(sick))[0] == "quarantined"
