"""only=, dry_run, retry= and scripts/status.py as a user types them."""

import json
import os
import pty
import subprocess
import sys

import pytest

from llmtrain.spec.rundir import write_json

PRODUCT = ["-m", "model.d_model=8,16", "budget.flops=1e9,2e9"]


def state_of(folder):
    return json.loads((folder / "state.json").read_text())["state"]


@pytest.mark.slow
def test_a_dry_run_writes_nothing_and_only_trains_what_it_names(cli, tiny_overrides, tmp_path):
    dry = cli("train.py", *tiny_overrides, *PRODUCT, "only=2e9", "dry_run=true")
    assert dry.returncode == 0, dry.stderr
    lines = dry.stdout.splitlines()
    assert lines[-1].startswith("2 cells: 2 to train, 4e+09 FLOPs; nothing was written")
    named = {line.split()[2] for line in lines[:-1]}
    assert list(tmp_path.iterdir()) == []
    single = cli("train.py", *tiny_overrides, "dry_run=true")
    assert "1 cell: 1 to train" in single.stdout, single.stderr
    assert list(tmp_path.iterdir()) == []

    done = cli("train.py", *tiny_overrides, *PRODUCT, "only=2e9")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs/single"
    assert {path.parent.name for path in folder.glob("*/record.json")} == named
    status = json.loads(cli("status.py", "runs=runs/single", "json=true").stdout)
    assert status["counts"] == {"done": 2, "planned": 2}
    assert status["left"]["n_finished"] == 2

    dry = cli("train.py", *tiny_overrides, *PRODUCT, "dry_run=true")
    assert dry.stdout.count("would train") == dry.stdout.count("done  ") == 2
    wrong = cli("train.py", *tiny_overrides, *PRODUCT, "only=C9e9-*")
    assert wrong.returncode == 2
    assert "only=C9e9-* names none of the 4 cells" in wrong.stderr


@pytest.mark.slow
def test_a_cell_in_quarantine_is_passed_by_until_retry(cli, tiny_overrides, tmp_path):
    sweep = ["-m", *tiny_overrides, "recipe.lr_multiplier=1,1e30"]
    outputs = [cli("train.py", *sweep) for _ in range(3)]
    assert [done.returncode for done in outputs] == [1, 1, 1]
    assert [done.stdout.count("FAILED: ") for done in outputs] == [1, 1, 0]
    assert "PASSED BY: step" in outputs[2].stdout
    assert "2 cells: 1 done before, 0 to train on 1 worker, 1 passed by" in outputs[2].stdout
    hints = ["the same command tries them again", *["same command with retry=failed tries"] * 2]
    for done, hint in zip(outputs, hints, strict=True):
        assert hint in " ".join(done.stdout.split())
    assert "retry=failed tries it again" in outputs[2].stderr
    again = cli("train.py", *sweep, "retry=failed")
    assert (again.returncode, again.stdout.count("FAILED: ")) == (1, 1)
    states = [state_of(path.parent) for path in tmp_path.glob("runs/single/*/state.json")]
    assert sorted(states) == ["done", "failed"]


@pytest.fixture
def folder(tmp_path):
    """A sweep of three cells: planned, failed and quarantined."""
    run = tmp_path / "runs" / "demo"
    facts = {"n_params": 1234, "n_tokens": 5678, "flops": 1e9}
    for name, state, reason in (("b", "failed", "loss nan"), ("c", "quarantined", "no step")):
        (run / name).mkdir(parents=True)
        (run / name / "state.json").write_text(json.dumps({"state": state, "reason": reason}))
    cells = dict.fromkeys("abc", facts)
    (run / "sweep.json").write_text(json.dumps({"cells": cells, "refused": []}))
    return run


def test_status_is_plain_lines_in_a_pipe(cli, folder):
    done = cli("status.py", f"runs={folder}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "planned     a",
        "failed      b  loss nan",
        "quarantined c  no step",
        "3 cells: 1 planned, 1 failed, 1 quarantined",
        "quarantined cells failed twice in the same way: retry=failed tries them again",
    ]
    for key in ("watch=0", "watch=soon", "json=yes", "colour=red"):
        wrong = cli("status.py", f"runs={folder}", key)
        assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1), wrong.stderr


def test_watching_a_sweep_in_a_terminal_ends_when_nothing_is_left(folder, root):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(root / "scripts/status.py"), f"runs={folder}", "watch=0.2"],
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(theirs)
    seen = os.read(ours, 65536)  # the first look
    assert process.poll() is None  # a cell is planned: it watches on
    write_json(folder / "sweep.json", {"cells": {key: {} for key in "bc"}})  # whole at any look
    while True:
        try:
            seen += os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    assert process.wait(timeout=240) == 0, seen
    text = seen.decode()
    assert "1,234" in text
    assert "2 cells: 1 failed, 1 quarantined" in text
