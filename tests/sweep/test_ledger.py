import dataclasses
import json
import threading

import pytest

from llmtrain.spec import rundir
from llmtrain.spec.errors import ConfigError
from llmtrain.spec.plan import plan_run
from llmtrain.sweep.grid import Cell, Grid
from llmtrain.sweep.ledger import (
    CellStatus,
    cell_status,
    flops_left,
    is_done,
    is_passed_by,
    note_failure,
    read_sweep,
    reopen,
    time_left,
    write_sweep,
)
from llmtrain.sweep.process import DIED, Job, Outcome


@pytest.fixture
def cells(make):
    """Four cells that differ in their seed."""
    configs = [make({"seed": seed}) for seed in range(4)]
    plans = [plan_run(config, vocab_size=256, unique_tokens=None) for config in configs]
    return [Cell(config=c, plan=p) for c, p in zip(configs, plans, strict=True)]


def test_every_planned_cell_is_listed_with_its_state(cells, tmp_path):
    write_sweep(tmp_path, [Grid(cells=tuple(cells), refused=())])
    planned, running, failed, killed = (tmp_path / cell.run_id for cell in cells)
    for folder in (running, failed, killed):
        folder.mkdir()
        rundir.write_state(folder, "running")
    rundir.write_state(failed, "failed", "loss nan")
    with rundir.hold(running):
        found = {status.run_id: (status.state, status.reason) for status in read_sweep(tmp_path)}
    assert found == {
        planned.name: ("planned", None),
        running.name: ("running", None),
        failed.name: ("failed", "loss nan"),
        killed.name: ("stopped", "run the sweep again to go on"),
    }
    assert not is_done(killed)


def test_a_second_plan_adds_cells_and_forgets_none(cells, tmp_path):
    write_sweep(tmp_path, [Grid(cells=tuple(cells[:2]), refused=())])
    write_sweep(tmp_path, [Grid(cells=tuple(cells[1:]), refused=())])
    assert [status.run_id for status in read_sweep(tmp_path)] == [cell.run_id for cell in cells]
    (cell, *_) = json.loads((tmp_path / "sweep.json").read_text())["cells"].values()
    assert cell["n_params"] == cells[0].plan.params["no_input_embedding"]


def test_a_sweep_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not exist; name a folder under runs/"):
        read_sweep(tmp_path / "absent")


def failure(error, way, stack=None):
    job = Job(name="cell", payload={}, cost=1.0)
    return Outcome(job=job, error=error, way=way, exit_code=1, stack=stack)


def test_a_state_is_that_of_its_holder_and_stopped_without_one(tmp_path):
    for state in ("running", "trained", "evaluated"):
        folder = tmp_path / state
        folder.mkdir()
        rundir.write_state(folder, state)
        with rundir.hold(folder):
            assert [c.state for c in read_sweep(tmp_path) if c.run_id == state] == [state]
    assert {cell.state for cell in read_sweep(tmp_path)} == {"stopped"}


def test_the_second_failure_in_the_same_way_is_quarantined(make, tmp_path):
    config = make({"runs_root": str(tmp_path)})
    folder = rundir.run_directory(config)
    for error, way, state in (
        ("loss nan", "DivergedError", "failed"),
        ("killed by SIGSEGV", DIED, "failed"),  # another way
        ("no step for 5 s", DIED, "quarantined"),  # the worker died again
    ):
        reopen([config])
        assert rundir.read_state(folder)[0] == "planned"
        note_failure(folder, failure(error, way, stack="where"))
        assert rundir.read_state(folder) == (state, error)
        assert is_passed_by(folder)
    assert (folder / "stack.txt").read_text() == "where"

    reopen([config])
    assert rundir.read_state(folder)[0] == "quarantined"  # until it is asked for
    reopen([config], quarantined=True)
    assert rundir.read_state(folder) == ("planned", None)
    note_failure(folder, failure("loss nan", "DivergedError"))
    assert rundir.read_state(folder)[0] == "failed"  # the count began anew


def test_drivers_that_plan_at_once_lose_no_cell(cells, tmp_path):
    def plan(cell):
        write_sweep(tmp_path, [Grid(cells=(cell,), refused=())])

    threads = [threading.Thread(target=plan, args=(cell,)) for cell in cells * 8]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {status.run_id for status in read_sweep(tmp_path)} == {cell.run_id for cell in cells}


def status(state, flops, done=0.0, seconds=None):
    return CellStatus(
        run_id="x",
        state=state,
        reason=None,
        val_loss=None,
        facts={"flops": flops},
        flops_done=done,
        seconds=seconds,
    )


def test_the_time_left_is_the_flops_left_times_the_mean_cost_over_the_slots():
    done = [status("done", 10.0, 10.0, 3.0), status("done", 30.0, 30.0, 5.0)]  # 0.2 s per FLOP
    open_cells = [status("planned", 50.0), status("running", 40.0, 30.0), status("failed", 99.0)]
    left = time_left([*done, *open_cells], n_slots=8)
    assert (left.flops_left, left.seconds_per_flop) == (60.0, pytest.approx(0.2))
    assert left.seconds == pytest.approx(60 * 0.2 / 1)  # one is at work
    idle = [*done, status("planned", 50.0), status("stopped", 40.0, 30.0)]
    assert time_left(idle, n_slots=8).seconds == pytest.approx(60 * 0.2 / 2)  # two cells, not 8
    assert time_left(open_cells, n_slots=2) is None  # nothing finished yet
    assert time_left(done, n_slots=2) is None
    unknown = dataclasses.replace(open_cells[0], facts={})
    assert time_left([*done, unknown], n_slots=2) is None


def test_a_branch_has_only_its_cooldown_left():
    branch = status("planned", 50.0)
    branch = dataclasses.replace(branch, facts={"flops": 50.0, "flops_spent": 10.0})
    assert flops_left(branch) == 10.0
    assert flops_left(dataclasses.replace(branch, flops_done=44.0)) == 6.0  # prefix and some more
    assert flops_left(status("running", 40.0, 30.0)) == 10.0


def test_a_folder_of_another_user_is_passed_over_and_a_damaged_record_is_named(make, tmp_path):
    config = make({"runs_root": str(tmp_path)})
    folder = rundir.run_directory(config)
    folder.mkdir(parents=True)
    rundir.write_state(folder, "failed", "before")
    folder.chmod(0o777)  # whoever can write there decides what is in it
    job = Job(name=folder.name, payload={}, cost=1.0)
    note_failure(folder, Outcome(job=job, error="x", exit_code=5, way="MismatchError"))
    reopen([config])
    assert rundir.read_state(folder)[0] == "failed"
    folder.chmod(0o755)
    (folder / "record.json").write_text("{}", encoding="utf-8")
    found = cell_status(folder, {})
    assert found.state == "failed"
    assert "record has schema" in found.reason


def test_a_torn_last_row_of_the_metrics_is_passed_over(tmp_path):
    folder = tmp_path / "cell"
    folder.mkdir()
    rundir.write_state(folder, "stopped")
    row = json.dumps({"step": 1, "flops": 5.0})
    (folder / "metrics.jsonl").write_text(row + "\n" + row[:9])
    assert read_sweep(tmp_path)[0].flops_done == 5.0
