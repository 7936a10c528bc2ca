"""A single run that hangs leaves within its limit, with its stacks; one that is slow does not."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmtrain.spec.rundir import read_spent, read_state
from llmtrain.spec.silence import START_S, Silence

ENTRY = Path(__file__).with_name("hanging_train.py")
LIMIT_S = 4.0  # no step of a crowded machine, nor its disk, takes so long


@pytest.fixture
def hang(tiny_overrides, tmp_path):
    """Return a function that runs to a hang: (exit code, seconds from the hang, stderr, folder)."""

    def go(where, step, *overrides, name="hangs"):
        arguments = [*tiny_overrides, f"name={name}", f"runtime.hang_s={LIMIT_S}", *overrides]
        command = [sys.executable, str(ENTRY), where, str(step), *arguments]
        process = subprocess.Popen(
            command, cwd=tmp_path, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        family = tmp_path / "runs" / name
        try:
            _, error = process.communicate(timeout=3 * START_S)
        finally:
            process.kill()
            process.wait()
        (folder,) = family.iterdir()
        quiet = time.time() - (folder / "metrics.jsonl").stat().st_mtime
        return process.returncode, quiet, error, folder

    return go


def hangs(n):
    """Return n hangs: a place and a step, every place among them."""
    rng = random.Random(0)
    places = ("write", "step", "evaluate", "native", "save")
    return [(places[i % 5], rng.randrange(3, 40)) for i in range(n)]


@pytest.mark.parametrize("n", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_run_that_hangs_leaves_with_its_stacks_and_code_6(hang, n):
    for number, (where, step) in enumerate(hangs(n)):
        code, quiet, error, folder = hang(
            where, step, "tracking.points=10000", "checkpoint.every_steps=1",
            "evaluation.points=1000", name=f"hang{number}",
        )  # fmt: skip
        assert code == 6, error
        assert quiet < START_S  # by its own limit, not by that of the first sign
        (line,) = [line for line in error.splitlines() if "hang_s" in line]
        assert f"no step for runtime.hang_s={LIMIT_S:g}; stack.txt says where it stood" in line
        state, reason = read_state(folder)
        assert state == "failed"
        assert reason == f"no step for runtime.hang_s={LIMIT_S:g}; stack.txt says where it stood"
        stack = (folder / "stack.txt").read_text()
        assert f'{ENTRY.name}"' in stack
        assert "in hang" in stack
        assert not (folder / "record.json").exists()
        spent = read_spent(folder)
        assert spent.seconds["undone"] > LIMIT_S  # the silence is paid for too
        assert (spent.energy_j, spent.energy_source) == (None, "none")


@pytest.mark.slow
def test_the_same_command_goes_on_after_a_hang(hang, cli, tiny_overrides):
    name = "name=again"
    code, _, _, folder = hang("step", 9, "checkpoint.every_steps=1", name="again")
    assert code == 6
    done = cli("train.py", *tiny_overrides, name)
    assert done.returncode == 0, done.stderr
    assert read_state(folder) == ("done", None)


def test_silence_is_counted_by_looks_and_the_first_sign_may_take_longer(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def look(silence, beats, after_s):
        now[0] += after_s
        return silence.is_too_long(beats, limit_s=10.0, tick_s=1.0)

    silence = Silence(0)
    assert not any(look(silence, 0, 1.0) for _ in range(int(START_S)))
    assert look(silence, 0, 1.0)
    silence = Silence(0)
    assert not look(silence, 1, 1.0)
    assert not any(look(silence, 1, 1.0) for _ in range(10))
    assert not look(silence, 2, 1.0)
    assert not look(silence, 2, 5000.0)  # the process was stopped: one look
    assert not any(look(silence, 2, 1.0) for _ in range(9))
    assert look(silence, 2, 1.0)
