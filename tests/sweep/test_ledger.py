import json

import pytest

from llmtrain.spec import rundir
from llmtrain.spec.errors import ConfigError
from llmtrain.spec.plan import plan_run
from llmtrain.sweep.grid import Cell, Grid
from llmtrain.sweep.ledger import is_done, read_sweep, write_sweep


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
