"""R6, R7: a disk that takes no more ends a run in one line and costs it nothing that was saved."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bad_disk import BadDisk, half_written
from edge import guarded
from stops import Stop

from llmtrain.corpus.shards import open_corpus
from llmtrain.spec import disk, room
from llmtrain.spec.errors import DiskError, InterruptedRunError
from llmtrain.spec.plan import plan_run, run_id
from llmtrain.spec.record import read_record
from llmtrain.spec.rundir import run_directory
from llmtrain.training.checkpoint import load_checkpoint
from llmtrain.training.loop import train

SMALL = {
    "model.d_model": 16,
    "model.n_layers": 1,
    "budget.n_tokens": 2560,  # 10 steps
    "checkpoint.every_steps": 2,
    "tracking.points": 1000,
}
SAID = {
    errno.ENOSPC: "disk full; free space",
    errno.EDQUOT: "disk quota used up; free space",
    errno.EROFS: "read-only file system; ",
    errno.EFBIG: "limit on the size of files reached",
    errno.EIO: "the disk failed",
}


def losses(config):
    rows = map(json.loads, (run_directory(config) / "metrics.jsonl").read_text().splitlines())
    return [row.get("train/loss", row.get("val/loss")) for row in rows]


@pytest.fixture
def stopped(make, corpus, tmp_path):
    """A run that was stopped at step 4, its twin's losses, and a way to stand there anew."""
    whole = make(SMALL | {"runs_root": str(tmp_path / "whole")})
    train(whole, corpus)
    config = make(SMALL | {"runs_root": str(tmp_path / "runs")})
    with pytest.raises(InterruptedRunError):
        train(config, corpus, on_progress=Stop(4))
    shutil.copytree(run_directory(config), tmp_path / "stopped")

    def anew():
        shutil.rmtree(run_directory(config))
        shutil.copytree(tmp_path / "stopped", run_directory(config))

    return config, losses(whole), anew


def n_operations(config, corpus, anew):
    with pytest.MonkeyPatch.context() as patch:
        counted = BadDisk(patch, run_directory(config), errno.ENOSPC)
        train(config, corpus)
    anew()
    return counted.done


@pytest.mark.parametrize(
    ("number", "every"),
    [
        (errno.ENOSPC, 12),
        (errno.EDQUOT, 40),
        (errno.EROFS, 40),
        pytest.param(errno.ENOSPC, 1, marks=pytest.mark.slow),
        pytest.param(errno.EDQUOT, 5, marks=pytest.mark.slow),
        pytest.param(errno.EROFS, 5, marks=pytest.mark.slow),
        pytest.param(errno.EFBIG, 5, marks=pytest.mark.slow),
        pytest.param(errno.EIO, 5, marks=pytest.mark.slow),
    ],
)
def test_a_run_on_a_disk_that_fills_up_says_so_and_goes_on_later(
    stopped, corpus, capfd, number, every
):
    config, expected, anew = stopped
    directory = run_directory(config)
    n = n_operations(config, corpus, anew)
    assert n > 50
    with capfd.disabled():
        print(f"\n{len(range(0, n, every))} of {n} operations")
    capfd.readouterr()
    for allowed in range(0, n, every):
        with pytest.MonkeyPatch.context() as patch:
            BadDisk(patch, directory, number, allowed)
            code = guarded(lambda: train(config, corpus) and None)
        (line,) = capfd.readouterr().err.splitlines()
        assert code == 1, allowed
        assert SAID[number] in line, allowed
        assert str(directory) in line
        assert line.endswith("then run the same command again")
        state, passed_over = load_checkpoint(directory / "checkpoints", run_id=run_id(config))
        assert state["session"]["step"] >= 4
        assert passed_over == []
        assert list(directory.rglob(".tmp-*")) == []  # its space is given back
        assert half_written(directory) == []
        read_record(directory)
        assert guarded(lambda: train(config, corpus) and None) == 0
        assert losses(config) == expected
        anew()


def ran(make, raw, corpus_dir, root, what, *numbers, changes):
    """Return what tests/training/disk_worker.py found, and the uninterrupted run's losses."""
    whole = make(SMALL | changes | {"runs_root": str(root / "whole")})
    train(whole, open_corpus(corpus_dir))
    for key, value in (SMALL | changes).items():
        group, name = key.split(".")
        raw[group][name] = value
    raw["runs_root"] = str(root / "runs")
    repository = Path(__file__).resolve().parents[2]
    command = [
        *(["unshare", "-rm"] if what == "tmpfs" else []),
        *(sys.executable, str(Path(__file__).with_name("disk_worker.py")), json.dumps(raw)),
        *(str(corpus_dir), what, *map(str, numbers)),
    ]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": f"{repository}:{repository / 'scripts'}"},
        check=True,
        capture_output=True,
        text=True,
        timeout=250,
    )
    rows = (run_directory(whole) / "metrics.jsonl").read_text().splitlines()
    return json.loads(done.stdout.splitlines()[-1]), [json.loads(r).get("train/loss") for r in rows]


def assert_said_and_finished(found, expected, words):
    (line,) = found["first"]["said"].splitlines()
    assert found["first"]["code"] == 1
    assert words in line
    assert "/runs/test/" in line
    assert found["again"] == {"code": 0, "said": ""}
    assert found["losses"] == expected


@pytest.mark.slow
def test_real_limits_on_the_size_of_files(make, raw, tiny_corpus_dir, tmp_path):
    changes = {"model.d_model": 64}  # checkpoints of 0.6 MB; 4 KiB is less than plan.json
    limits = (1024, 4096, 102_400, 524_288)
    found, expected = ran(make, raw, tiny_corpus_dir, tmp_path, "limits", *limits, changes=changes)
    for one in found:
        assert_said_and_finished(one, expected, SAID[errno.EFBIG])
    assert "/checkpoints/step-" in found[-1]["first"]["said"]


def can_mount(folder):
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(folder)]
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_real_small_disk_that_fills_up_on_the_way(make, raw, tiny_corpus_dir, tmp_path):
    if not can_mount(tmp_path):
        pytest.skip("no tmpfs of one's own here: unshare -rm mount is not allowed")
    free = (0, 4096, 8192, 50_000, 100_000, 140_000)
    found, expected = ran(make, raw, tiny_corpus_dir, tmp_path, "tmpfs", *free, changes={})
    for one in found:
        assert_said_and_finished(one, expected, SAID[errno.ENOSPC])


def test_a_refusal_is_one_line_with_path_and_remedy(tmp_path):
    for number, (what, remedy) in disk.REFUSALS.items():
        with pytest.raises(DiskError) as caught, disk.writing(tmp_path / "file"):
            raise OSError(number, os.strerror(number))
        assert str(caught.value).startswith(f"{tmp_path / 'file'}: {what}; {remedy}")
        assert caught.value.exit_code == 1
    with pytest.raises(FileNotFoundError), disk.writing(tmp_path):  # a bug, not a disk
        (tmp_path / "absent").read_text()


# R7


BIGGER = {"model.d_model": 64, "model.n_layers": 2, "checkpoint.every_steps": 2}
SETTINGS = [
    {},
    {"optimizer.name": "muon"},
    {"optimizer.name": "nadam"},
    {"optimizer.name": "adam", "model.bias": True, "model.norm": "layernorm"},
    {"model.tied_head": True},
    {"model.qk_norm": True, "model.activation": "swiglu"},
    {"model.position": "learned"},
    {"model.d_model": 16, "model.n_layers": 1},
    {"model.n_layers": 8},
    {"tracking.points": 1, "budget.n_tokens": 51_200, "checkpoint.every_steps": 150},
]


def trained_and_planned(make, corpus, root, changes):
    """Train a run; return its configuration, its plan and the sizes of its checkpoints."""
    config = make(BIGGER | changes | {"runs_root": str(root)})
    train(config, corpus)
    folders = (run_directory(config) / "checkpoints").iterdir()
    sizes = [sum(file.stat().st_size for file in folder.iterdir()) for folder in folders]
    return config, plan_run(config, vocab_size=256, unique_tokens=None), sizes


@pytest.mark.parametrize("changes", SETTINGS)
def test_the_size_of_a_checkpoint_is_known_before_the_run(make, corpus, tmp_path, changes):
    config, plan, sizes = trained_and_planned(make, corpus, tmp_path, changes)
    assert room.checkpoint_bytes(config, plan) == pytest.approx(max(sizes), rel=0.03)


@pytest.fixture
def free(monkeypatch):
    """Return a function that sets how much of every disk is free."""

    def set_free(n_bytes):
        usage = shutil.disk_usage("/")._replace(free=round(n_bytes))
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)

    return set_free


def test_twenty_disks_are_judged_rightly_before_step_0(make, corpus, tmp_path, free, capfd):
    config, _, sizes = trained_and_planned(make, corpus, tmp_path / "measured", {})
    files = [p for p in run_directory(config).rglob("*") if p.is_file()]
    logs = sum(p.stat().st_size for p in files if "checkpoints" not in p.parts)
    peak = (config.checkpoint.keep + 1) * max(sizes) + logs
    shares = [0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0, 1.2, 1.3, 1.4]
    shares += [1.6, 1.7, 1.8, 2, 2.5, 3, 5, 10, 100, 1e6]
    for i, share in enumerate(shares):
        free(share * peak)
        run = make(BIGGER | {"runs_root": str(tmp_path / f"runs{i}")})
        code = guarded(lambda run=run: train(run, corpus) and None)
        said = capfd.readouterr().err
        assert code == (1 if share < 1.5 else 0), (share, said)
        if code:
            assert said.count("\n") == 1
            assert f"{share * peak / 1e6:.3g} MB free, less than 1.5 times the 4.8" in said
            assert "lower checkpoint.keep or choose another runs_root" in said
            left = {path.name for path in run_directory(run).iterdir()}
            assert left == {"lock"}  # no step was made, nothing claims that one was


def test_what_a_run_has_written_counts_as_free_when_it_goes_on(make, corpus, tmp_path, free):
    config = make(BIGGER | {"runs_root": str(tmp_path)})
    plan = plan_run(config, vocab_size=256, unique_tokens=None)
    with pytest.raises(InterruptedRunError):
        train(config, corpus, on_progress=Stop(8))
    need = room.bytes_needed([(config, plan)], at_once=1)
    free(1.5 * need - 1.9 * room.checkpoint_bytes(config, plan))
    train(config, corpus)


def test_a_short_run_needs_room_for_the_save_that_a_signal_asks_for(make):
    config = make(BIGGER | {"checkpoint.every_steps": None, "checkpoint.keep": 1})
    plan = plan_run(config, vocab_size=256, unique_tokens=None)
    need = room.bytes_needed([(config, plan)], at_once=1)
    assert need >= 2 * room.checkpoint_bytes(config, plan)


def test_a_sweep_needs_what_its_runs_leave_and_one_more_for_each_at_work(make):
    small, big = (make(BIGGER | {"model.d_model": d}) for d in (16, 128))
    runs = [(c, plan_run(c, vocab_size=256, unique_tokens=None)) for c in (small, big)]
    sizes = [room.checkpoint_bytes(*run) for run in runs]
    for at_once in (1, 2, 7):
        need = room.bytes_needed(runs, at_once=at_once)
        checkpoints = 2 * sum(sizes) + (sizes[1] if at_once == 1 else sum(sizes))
        assert 0 < need - checkpoints < 500_000  # logs


def test_states_for_branches_take_room_too(make):
    plain = {"schedule.name": "wsd", "budget.n_tokens": 10_240}
    none, two = (make(BIGGER | plain | {"checkpoint.branch_at": at}) for at in ([], [24, 30]))
    plan = plan_run(two, vocab_size=256, unique_tokens=None)
    more = room.bytes_needed([(two, plan)], at_once=1) - room.bytes_needed(
        [(none, plan)], at_once=1
    )
    assert more >= 2 * room.checkpoint_bytes(two, plan)


def test_a_folder_that_cannot_be_written_is_refused_before_step_0(
    make, corpus, tmp_path, monkeypatch
):
    config = make(SMALL | {"runs_root": str(tmp_path)})
    real = os.fsync

    def refuse(file):
        if ".probe-" in Path(f"/proc/self/fd/{file}").readlink().name:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        real(file)

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(DiskError, match="disk quota used up"):
        train(config, corpus)
    assert {path.name for path in run_directory(config).iterdir()} == {"lock"}
