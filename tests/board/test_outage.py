"""Whatever wandb does, the run is that of a run without it, after one warning at most."""

import copy
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from couriers import processes_of, wait_until_gone

from llmtrain.board import mirror
from llmtrain.corpus.shards import open_corpus
from llmtrain.spec.rundir import run_directory
from llmtrain.training.loop import train

WORKER = Path(__file__).with_name("one_run.py")
CROWDED_S = 30  # what a busy machine may add to a limit
TIMED = ("train/tokens_per_second", "train/memory_gb", "train/mfu")


def losses(directory: Path) -> list[dict]:
    """Return the rows of metrics.jsonl without what depends on the clock."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMED} for line in lines]


@pytest.fixture(scope="module")
def plain(make, tiny_corpus_dir, tmp_path_factory):
    """The rows of the run with wandb disabled."""
    config = make({"runs_root": str(tmp_path_factory.mktemp("plain"))})
    train(config, open_corpus(tiny_corpus_dir))
    return losses(run_directory(config))


@pytest.fixture
def outcome(raw, tiny_corpus_dir, tmp_path, root):
    """Return a function that trains in a process of its own; gives its rows and its warnings."""

    def run(mode: str, before=None) -> tuple[list[dict], list[str]]:
        config = copy.deepcopy(raw)
        config["runs_root"] = str(tmp_path)
        config["tracking"]["wandb"] = mode
        done = subprocess.run(
            [sys.executable, str(WORKER), json.dumps(config), str(tiny_corpus_dir)],
            env=os.environ | {"PYTHONPATH": str(root)},
            check=False,
            capture_output=True,
            text=True,
            timeout=400,
            preexec_fn=before,
        )
        ended = time.monotonic()
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout.splitlines()[-1])
        assert said["longest_finish"] <= 30
        assert said["start"] <= 10  # less than wandb's own limit: nothing was waited for
        assert said["finish"] <= said["longest_finish"] + CROWDED_S
        assert ended - said["returned"] <= CROWDED_S
        lines = [line for line in done.stderr.splitlines() if "wandb" in line]
        return losses(Path(said["directory"])), lines

    return run


def in_process(make, corpus_dir, root, capfd) -> tuple[list[dict], list[str]]:
    config = make({"runs_root": str(root), "tracking.wandb": "online"})
    train(config, open_corpus(corpus_dir))
    said = [line for line in capfd.readouterr().err.splitlines() if "wandb" in line]
    return losses(run_directory(config)), said


def test_refused(make, plain, tiny_corpus_dir, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("llmtrain.board.mirror.TIMEOUT_S", 2)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    rows, warnings = in_process(make, tiny_corpus_dir, tmp_path, capfd)
    assert rows == plain
    assert len(warnings) == 1
    assert "`wandb sync` sends it" in warnings[0]


def test_absent(make, plain, tiny_corpus_dir, tmp_path, monkeypatch, capfd):
    (tmp_path / "wandb.py").write_text("raise ImportError('no wandb here')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    rows, warnings = in_process(make, tiny_corpus_dir, tmp_path, capfd)
    assert rows == plain
    assert len(warnings) == 1
    assert "no wandb here; the files of the run have everything" in warnings[0]


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", ["mute", "500", "429", "401", "slow", "mute at the end"])
def test_a_bad_server_costs_at_most_half_a_minute_at_the_end(outcome, plain, server, behaviour):
    server(behaviour)
    rows, warnings = outcome("online")
    assert rows == plain
    assert len(warnings) == 1, warnings


@pytest.mark.slow
def test_a_server_that_dies_on_the_way(outcome, plain, server):
    server("dies at the first rows")
    rows, warnings = outcome("online")
    assert rows == plain
    assert len(warnings) == 1, warnings


@pytest.mark.slow
def test_no_room_for_wandbs_files(outcome, plain):
    """A limit on the size of a file stands for a full disk: metrics.jsonl stays below it."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))

    rows, warnings = outcome("offline", before=limit)
    assert rows == plain
    assert len(warnings) <= 1


def test_nothing_of_wandb_is_left_running(make, tiny_corpus_dir, tmp_path, server):
    server()
    config = make({"runs_root": str(tmp_path), "tracking.wandb": "online"})
    train(config, open_corpus(tiny_corpus_dir))
    process = mirror.Process.current
    assert process is not None
    assert len(processes_of(process.child.pid)) == 1  # wandb's own, which watches the courier
    mirror.Process.stop_idle()
    wait_until_gone(process.child.pid)
