"""What wandb gets of a run: the same run after a resume, and no secret."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from couriers import wait_until_gone

from llmtrain.board.identity import redacted, settled_mode, tag_list
from llmtrain.board.mirror import Process, WandbMirror
from llmtrain.board.offline import offline_files, read_offline
from llmtrain.corpus.shards import open_corpus
from llmtrain.spec.rundir import run_directory
from llmtrain.training.loop import train


def inspect(directory: Path) -> list[dict]:
    """Return the records of the only local run file below, by wandb's own reader."""
    (path,) = directory.glob("wandb/*run-*/run-*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def items(record: dict) -> dict:
    return {key: value for key, value in record.items() if not key.startswith("_")}


class StoppedError(Exception):
    pass


def stop_after(n_rows):
    """Return a progress hook that breaks a run off at its n-th row."""
    seen = []

    def hook(progress):
        seen.append(progress)
        if len(seen) == n_rows and progress.step < progress.n_steps:
            raise StoppedError

    return hook


@pytest.mark.parametrize("n_resumes", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_resumes_leave_one_run_with_every_step_once(make, tiny_corpus_dir, tmp_path, n_resumes):
    changes = {
        "runs_root": str(tmp_path),
        "tracking.wandb": "offline",
        "tracking.points": 1000,
        "checkpoint.every_steps": 1,
        "budget.n_tokens": 256 * (n_resumes + 10),
    }
    config, corpus = make(changes), open_corpus(tiny_corpus_dir)
    for _ in range(n_resumes):
        with pytest.raises(StoppedError):
            train(config, corpus, on_progress=stop_after(2))
    record = train(config, corpus)
    found = inspect(run_directory(config))
    steps = [r["history"]["item"]["_step"] for r in found if r["type"] == "history"]
    assert steps == list(range(1, record.n_steps + 1))
    assert record.n_steps == n_resumes + 10


def mirror_of(tmp_path, warnings, rows, mode="online"):
    init = {"project": "p", "group": "g", "id": "abc", "resume": "allow", "dir": str(tmp_path)}
    return WandbMirror(init, mode=mode, metrics={}, rows=rows, warn=warnings.append)


def rows_until(last):
    return [{"step": i, "tokens": 10 * i, "train/loss": 1 / i} for i in range(1, last + 1)]


def test_an_online_resume_goes_on_where_the_server_is(server, tmp_path):
    found, warnings = server(), []
    for begin, end in ((3, 5), (4, 8)):  # the second attempt was cut back to step 4
        mirror = mirror_of(tmp_path, warnings, rows_until(begin))
        for row in rows_until(end)[begin:]:
            mirror.log(row)
        mirror.finish({"val_loss": 1.5})
    (run,) = found.runs.values()
    assert [row["_step"] for row in run.history] == list(range(1, 9))
    assert run.history[6]["train/loss"] == 1 / 7
    assert (run.state, run.group, run.summary["val_loss"]) == ("finished", "g", 1.5)
    assert warnings == []
    (log,) = tmp_path.glob("wandb/run-*/logs/debug-internal.log")
    assert "ignoring" not in log.read_text()  # what wandb says of a step that is too low


def test_a_run_that_failed_is_no_finished_run_on_the_server(server, tmp_path):
    found = server()
    mirror_of(tmp_path, [], rows_until(3)).finish({}, exit_code=75)
    assert found.runs["abc"].state == "failed"


def test_what_went_wrong_online_is_whole_offline(server, tmp_path, monkeypatch):
    monkeypatch.setattr("llmtrain.board.mirror.TIMEOUT_S", 2)
    server("500")
    warnings = []
    mirror = mirror_of(tmp_path, warnings, rows_until(3))
    mirror.finish({"val_loss": 1.5})
    assert len(warnings) == 1
    assert "wandb sync" in warnings[0]
    history = [r["history"]["item"] for r in inspect(tmp_path) if r["type"] == "history"]
    assert [items(row) for row in history] == rows_until(3)


def test_a_finished_offline_run_is_whole_in_its_file(tmp_path):
    mirror = mirror_of(tmp_path, [], rows_until(20), mode="offline")
    mirror.finish({"val_loss": 2.0})
    courier = mirror.process.child.pid
    writers = Path(f"/proc/{courier}/task/{courier}/children").read_text().split()
    assert writers == []  # the process that writes the file lives on for a while after its answer
    (path,) = offline_files(tmp_path)
    run = read_offline(path)
    assert (run.state, run.summary["val_loss"], len(run.rows)) == ("finished", 2.0, 20)


def test_an_offline_run_that_is_synced_is_the_same_run(server, tmp_path):
    mirror = mirror_of(tmp_path, [], rows_until(40), mode="offline")
    mirror.finish({"val_loss": 1.5})
    found = server()
    where = ["--project", "p2", "--entity", "team", mirror.where]
    command = [sys.executable, "-m", "wandb", "sync", *where]
    subprocess.run(command, check=True, capture_output=True, timeout=300, cwd=tmp_path)
    (run,) = found.runs.values()
    assert (run.name, run.project, run.group, run.state) == ("abc", "p2", "g", "finished")
    assert [row["_step"] for row in run.history] == list(range(1, 41))
    assert run.summary["val_loss"] == 1.5


CANARY = "canary-5e3c1a7f"


def test_no_secret_leaves_by_config_rows_or_files(server, monkeypatch, tmp_path):
    found = server()
    monkeypatch.setenv("SOME_SERVICE_TOKEN", CANARY)
    monkeypatch.setattr(sys, "argv", ["train.py", f"--key={CANARY}"])
    init = {
        "project": "p",
        "id": "abc",
        "dir": str(tmp_path),
        "config": {"data/hub_path": f"hf://{CANARY}/x", "data/url": "https://me:pw7@host/x"},
    }
    mirror = WandbMirror(init, mode="online", metrics={}, rows=rows_until(2), warn=print)
    mirror.finish({"note": f"failed with {CANARY}"})
    courier = mirror.process.child.pid
    Process.stop_idle()
    wait_until_gone(courier)  # nothing is written any more
    assert "[redacted]" in found.runs["abc"].config
    sent = b"".join(found.bodies)
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for secret in (CANARY.encode(), b"k" * 40, b"pw7", b"argv"):
        assert secret not in sent
        assert secret not in kept
    names = {path.name for path in tmp_path.rglob("*")}
    assert not names & {"wandb-metadata.json", "requirements.txt", "output.log", "diff.patch"}


def test_a_quoted_secret_is_found_in_json(monkeypatch):
    monkeypatch.setenv("MY_PASSWORD", 'with"quote\\and more')
    assert json.loads(redacted({"x": 'a with"quote\\and more b'})) == {"x": "a [redacted] b"}


@pytest.mark.parametrize(
    ("environment", "netrc", "mode"),
    [
        ({}, "", "offline"),
        ({"WANDB_API_KEY": "k" * 40}, "", "online"),
        ({"WANDB_API_KEY": "k" * 40, "WANDB_MODE": "offline"}, "", "offline"),
        ({"WANDB_MODE": "disabled"}, "", "disabled"),
        ({}, "machine api.wandb.ai login user password k", "online"),
        ({}, "machine other.host login user password k", "offline"),
        ({"WANDB_BASE_URL": "https://own.host"}, "machine own.host login u password k", "online"),
    ],
)
def test_auto_goes_online_only_with_a_key(monkeypatch, tmp_path, environment, netrc, mode):
    (tmp_path / "netrc").write_text(netrc + "\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert settled_mode("auto") == mode
    assert settled_mode("disabled") == "disabled"


def test_tags_are_what_wandb_takes():
    assert tag_list("a", "", "a", "b" * 99) == ["a", "b" * 64]
