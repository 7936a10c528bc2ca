"""R4: a signal at any time, from the first import to the record, saves what there is and leaves."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmtrain.corpus.shards import open_corpus
from llmtrain.spec.build import build
from llmtrain.spec.rundir import read_state, run_directory
from llmtrain.spec.settings import TrainConfig
from llmtrain.training.loop import train

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
TIMED = ("train/tokens_per_second", "train/memory_gb")
LEAVES_S = 30.0
STARTED_S = 240.0  # a machine ten times slower, and crowded
N_STEPS = 400


@pytest.fixture
def command(root, tiny_overrides):
    """The command line of a run of 400 steps, each with a row."""
    free = [o for o in tiny_overrides if not o.startswith("budget.flops")]
    longer = ["budget.flops=null", "budget.n_tokens=102400", "tracking.points=1000"]
    saves = ["checkpoint.every_steps=150", "checkpoint.keep=9", "evaluation.points=50"]
    return [sys.executable, str(root / "scripts/train.py"), *free, *longer, *saves]


def wait_until(happened, process):
    """Wait for something that happens in a process that goes on."""
    deadline = time.monotonic() + STARTED_S
    while not happened():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def hears(pid):
    """Return whether the process has a handler for every signal: before, it is not ours yet."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16)
    return all(caught >> (number - 1) & 1 for number in SIGNALS)


@pytest.fixture
def start(command, tmp_path):
    """Return a function that starts the run in a folder and returns when it can hear signals."""
    started = []

    def go(folder, *more):
        (tmp_path / folder).mkdir(exist_ok=True)
        set_here = {override.partition("=")[0] for override in more}
        process = subprocess.Popen(
            [*(o for o in command if o.partition("=")[0] not in set_here), *more],
            cwd=tmp_path / folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        wait_until(lambda: hears(process.pid), process)
        return process

    yield go
    for process in started:
        process.kill()
        process.communicate()


def finish(folder, n_steps=N_STEPS):
    """Finish what lies in a folder in this process; return its directory."""
    (path,) = folder.glob("runs/single/*/config.json")
    config = build(TrainConfig, json.loads(path.read_text())["config"])
    config = dataclasses.replace(config, runs_root=str(folder / "runs"))
    (corpus,) = Path(config.data.root).glob("tiny-*")
    record = train(config, open_corpus(corpus))
    assert record.n_steps == n_steps
    return run_directory(config)


def outcome(directory):
    """Return the metrics without time, the final losses and the bits of a late checkpoint."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    tensors = directory / "checkpoints/step-000000300/tensors.safetensors"
    return [
        [{k: v for k, v in row.items() if k not in TIMED} for row in rows],
        hashlib.sha256(tensors.read_bytes()).hexdigest(),
    ]


def cpu_s(pid):
    """Return the processor seconds of a process: wall seconds would be those of its neighbours."""
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


def leaves(process, *numbers, after_s=0.0):
    """Send signals; return the exit code, the line said and the processor seconds it took."""
    before, at_signal = resource.getrusage(resource.RUSAGE_CHILDREN), cpu_s(process.pid)
    for number in numbers:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        time.sleep(after_s)
    out, error = process.communicate(timeout=STARTED_S)
    assert "Traceback" not in out + error, out + error
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    in_all = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return process.returncode, error, in_all - at_signal


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_signals_at_random_times_leave_a_state_that_goes_on(start, tmp_path, count):
    process = start("whole")
    begin = time.monotonic()
    code, error, _ = leaves(process)
    whole_s = time.monotonic() - begin
    assert code == 0, error
    (whole,) = (tmp_path / "whole/runs/single").iterdir()
    expected = outcome(whole)
    rng, saved, before, slowest = random.Random(count), 0, 0, 0.0
    for folder in map("run{}".format, itertools.count()):
        if saved + before == count:
            break
        process = start(folder)
        time.sleep(rng.uniform(0.0, whole_s))
        numbers = rng.choices(SIGNALS, k=rng.choice([1, 2]))
        code, error, took_s = leaves(process, *numbers, after_s=rng.uniform(0.0, 0.03))
        if list((tmp_path / folder).glob("runs/single/*/record.json")):  # it came when all was
            assert code in (0, 75), error
            continue
        assert code == 75, error
        assert error.count("\n") == 1, error
        assert "run the same command to go on" in error
        assert took_s < LEAVES_S
        slowest = max(slowest, took_s)
        if found := sorted((tmp_path / folder).glob("runs/single/*/checkpoints/*")):
            *_, last = (found[-1].parents[1] / "metrics.jsonl").read_text().splitlines()
            step = json.loads(last)["step"]
            assert found[-1].name == f"step-{step:09d}"  # at most one step old
            assert f"at step {step} of {N_STEPS}; saved in" in error or len(numbers) == 2
            assert read_state(found[-1].parents[1])[0] == "stopped"
            assert outcome(finish(tmp_path / folder)) == expected
            saved += 1
        else:
            assert "stopped by SIG" in error
            rows = (tmp_path / folder).glob("runs/single/*/metrics.jsonl")
            assert not any(path.stat().st_size for path in rows)
            before += 1
        print(f"{saved} saved, {before} before the first step; {slowest:.2f} s at most", flush=True)


def test_a_signal_while_text_is_tokenised_leaves_nothing(start, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    rows = (f'{{"text": "def f{i}(x): return x"}}\n' for i in range(1_000_000))
    (text / "rows.jsonl").write_text("".join(rows))  # takes seconds
    process = start("run", f"data.paths=[{text}]", "data.root=data")
    building = tmp_path / "run/data"
    wait_until(lambda: list(building.glob(".tiny-*.building")), process)
    code, error, took_s = leaves(process, signal.SIGTERM)
    assert (code, error) == (75, "train.py: stopped by SIGTERM; run the same command to go on\n")
    assert took_s < LEAVES_S
    assert list((tmp_path / "run").iterdir()) == []


SECOND = """
import os, signal, interrupts

def write(*given, plain=os.write):
    plain(*given)
    signal.raise_signal(signal.SIGUSR1)  # between the line and the end

os.write = write
signal.raise_signal(signal.SIGTERM)
"""


def test_of_two_signals_the_first_alone_is_said(root):
    done = subprocess.run(
        [sys.executable, "-c", SECOND], cwd=root / "scripts", stderr=subprocess.PIPE, text=True,
        check=False, timeout=STARTED_S,
    )  # fmt: skip
    said = "-c: stopped by SIGTERM; run the same command to go on\n"
    assert (done.returncode, done.stderr) == (75, said)


ON_A_TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"


def test_ctrl_c_on_a_terminal_saves_and_says_one_line(command, tmp_path):
    n_steps = 4 * N_STEPS  # which last for seconds from the first row on
    longer = [o for o in command if not o.startswith("budget.n_tokens=")]
    longer.append(f"budget.n_tokens={n_steps * 256}")
    process = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL, *longer],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    metrics = "runs/single/*/metrics.jsonl"
    wait_until(lambda: any(path.stat().st_size for path in tmp_path.glob(metrics)), process)
    process.stdin.write("\x03")
    process.stdin.flush()
    out, _ = process.communicate(timeout=STARTED_S)
    assert process.returncode == 75, out
    assert "Traceback" not in out
    *_, said = out.splitlines()
    assert re.search(r"SIGINT at step \d+ of 1600; saved in .*; run the .* go on$", said)
    assert finish(tmp_path, n_steps)
