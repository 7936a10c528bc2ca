"""One run over two processes, DDP and FSDP2, by a real torchrun: the same run as on one device."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmtrain.spec.errors import ConfigError, InterruptedRunError
from llmtrain.spec.placement import placement
from llmtrain.spec.record import read_record
from llmtrain.spec.rundir import read_state, run_directory
from llmtrain.training.loop import train
from llmtrain.training.parallel import Replicas, Team, joined
from llmtrain.training.session import Session

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
KINDS = ("ddp", "fsdp")
FAULTY = 6
EVERY_ROW = {"tracking.points": 1000, "checkpoint.every_steps": 10, "evaluation.points": 2}
UNEVEN = {"recipe.batch_tokens": 224, "budget.n_tokens": 4480}
# Rows of a step over two devices: 8 as 4 + 4 in passes of 3 + 1; 7 as 3 + 4; 3 as 1 + 2, so that
# one device has a pass only for company; 1 as 0 + 1.
CASES = {
    "accumulated": {"runtime.micro_batch_tokens": 96},
    "uneven": {
        **UNEVEN,
        "seq_len.pacing": "linear",
        "seq_len.warmup_fraction": 0.5,
        "budget.tolerance": 0.05,
        "evaluation.n_tokens": 480,
    },
    "company": {
        "recipe.batch_tokens": 96,
        "budget.n_tokens": 1920,
        "runtime.micro_batch_tokens": 32,
    },
    "chunked": {
        **UNEVEN,
        "runtime.micro_batch_tokens": 64,
        "runtime.loss_head": "chunked",
        "model.tied_head": True,
    },
    "one_row": {
        "recipe.batch_tokens": 32,
        "recipe.warmup_tokens": 64,
        "budget.n_tokens": 640,
        "model.tied_head": True,
        "model.position": "learned",
        "model.norm": "layernorm",
        "model.init": "fixed",
        "runtime.activation_checkpointing": True,
        "optimizer.z_loss": 1e-4,
    },
}


@pytest.fixture(scope="module")
def started():
    """Return a function that starts a command; what is left of it at the end is stopped."""
    processes = []

    def go(command, folder):
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield go
    for process in processes:
        if process.poll() is None:
            process.terminate()  # torchrun passes it on, and kills what does not leave
            process.wait(60)


@pytest.fixture(scope="module")
def team(tiny_corpus_dir, started):
    """Return a function that trains runs on two processes and returns both processes' notes."""

    def go(folder, runs):
        listed = [
            {"config": dataclasses.asdict(config), "stop": stop, "fault": fault}
            for config, stop, *fault in runs
        ]
        task = {"corpus": str(tiny_corpus_dir), "out": str(folder), "runs": listed}
        (folder / "task.json").write_text(json.dumps(task))
        worker = str(Path(__file__).with_name("team_worker.py"))
        process = started([*TORCHRUN, worker, str(folder / "task.json")], folder)
        _, error = process.communicate(timeout=400)
        assert process.returncode == 0, error[-5000:]
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]

    return go


def rows(directory):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    timed = ("train/tokens_per_second", "train/memory_gb")
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def weights(directory):
    (newest,) = sorted((directory / "checkpoints").glob("step-*"))[-1:]
    return load_file(newest / "tensors.safetensors")


def assert_same_rows(found, expected, rel):
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=rel), one["step"]


def assert_same_state(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def stop_at_5(progress):
    if progress.step == 5:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def trained(make, corpus, team, tmp_path_factory):
    """All runs of the fast tests in one torchrun, as starting takes longer than training them.

    The folder that holds them and, by name, how they ended: DDP and FSDP2 over every case, and the
    run "parts" begun here on one device and stopped twice more.
    """
    folder = tmp_path_factory.mktemp("two")
    runs = {}
    for kind in KINDS:
        for name, changes in CASES.items():
            where = {"runs_root": str(folder / kind), "name": name, "runtime.parallel": kind}
            runs[f"{kind} {name}"] = (make(EVERY_ROW | changes | where), None)
    parts = EVERY_ROW | {"runs_root": str(folder), "name": "parts"}
    with pytest.raises(InterruptedRunError):
        train(make(parts), corpus, on_progress=stop_at_5)
    runs["ddp stopped"] = (make(parts | {"runtime.parallel": "ddp"}), [1, 9])
    runs["fsdp stopped"] = (make(parts | {"runtime.parallel": "fsdp"}), [0, 14])
    for kind in KINDS:
        for policy in ("stop", "skip", "rollback"):
            where = {"runs_root": str(folder / kind), "name": policy, "runtime.parallel": kind}
            config = make(EVERY_ROW | where | {"guard.on_nonfinite": policy})
            runs[f"{kind} {policy}"] = (config, None, 1, FAULTY)
    first, second = team(folder, runs.values())
    return folder, dict(zip(runs, zip(first, second, strict=True), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_two_devices_train_the_run_of_one(make, corpus, trained, tmp_path, name):
    folder, notes = trained
    changes = EVERY_ROW | CASES[name] | {"name": name}
    record = train(make(changes | {"runs_root": str(tmp_path)}), corpus)
    one = run_directory(make(changes | {"runs_root": str(tmp_path)}))
    for kind in KINDS:
        first, second = notes[f"{kind} {name}"]
        assert first == second  # both processes know the same loss, to the last bit
        two = run_directory(make(changes | {"runs_root": str(folder / kind)}))
        assert_same_rows(rows(two), rows(one), rel=2e-5)
        assert_same_state(weights(two), weights(one))
        found = read_record(two)
        assert found.val_loss == pytest.approx(record.val_loss, rel=1e-6)
        assert found.val_loss_se == pytest.approx(record.val_loss_se, rel=1e-5)
        assert found.train_loss == pytest.approx(record.train_loss, rel=1e-6)
        assert found.hardware["n_devices"] == "2"
        assert read_state(two) == ("done", None)


def test_a_run_stopped_on_any_device_goes_on_on_any_number_of_them(make, corpus, trained, tmp_path):
    folder, notes = trained
    for name, step in (("ddp stopped", 9), ("fsdp stopped", 14)):
        first, second = notes[name]
        assert first == second
        code, message = first
        assert code == 75
        assert f"SIGTERM at step {step} of 20" in message
    parts = make(EVERY_ROW | {"runs_root": str(folder), "name": "parts"})
    whole = make(EVERY_ROW | {"runs_root": str(tmp_path), "name": "whole"})
    assert read_state(run_directory(parts))[0] == "stopped"
    resumed, record = train(parts, corpus), train(whole, corpus)
    assert_same_rows(rows(run_directory(parts)), rows(run_directory(whole)), rel=2e-5)
    assert resumed.val_loss == pytest.approx(record.val_loss, rel=1e-6)
    assert resumed.train_loss == pytest.approx(record.train_loss, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_nan_on_one_device_is_held_back_on_all(
    make, corpus, trained, tmp_path, monkeypatch, kind
):
    folder, notes = trained
    for policy in ("stop", "skip", "rollback"):
        first, second = notes[f"{kind} {policy}"]
        assert first == second
        if policy == "stop":
            assert first[0] == 1
            assert first[1].startswith(f"step {FAULTY + 1}: ")
    backward = Session._backward

    def faulty(session, stage, *batch):
        nan = math.nan if session.step == FAULTY else 1.0
        return backward(session, stage, *batch) * nan

    monkeypatch.setattr(Session, "_backward", faulty)
    alone = train(make({"runs_root": str(tmp_path), "guard.on_nonfinite": "skip"}), corpus)
    for policy in ("skip", "rollback"):
        found = read_record(run_directory(make({"runs_root": str(folder / kind), "name": policy})))
        assert found.n_skipped == alone.n_skipped == 1
        assert found.val_loss == pytest.approx(alone.val_loss, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_muon_and_compiled_blocks_train_on_two_devices_too(make, team, corpus, tmp_path, kind):
    # Muon's matrix products are bfloat16, so that a gradient's last bit moves its update by 1e-3.
    cases = {
        "muon": ({"optimizer.name": "muon"}, 3e-3),
        "compiled": ({"runtime.compile": True, **UNEVEN}, 1e-5),
    }

    def at(name, where):
        return EVERY_ROW | cases[name][0] | {"name": name, "runs_root": str(tmp_path / where)}

    both = [make(at(name, "two") | {"runtime.parallel": kind}) for name in cases]
    first, second = team(tmp_path, [(both[0], [1, 8]), *((config, None) for config in both)])
    assert first == second
    assert [code for code, _ in first] == [75, 0, 0]
    for config, (name, (_, rel)) in zip(both, cases.items(), strict=True):
        alone = make(at(name, "one") | {"runtime.compile": False})
        train(alone, corpus)
        found, expected = losses(run_directory(config)), losses(run_directory(alone))
        assert found == pytest.approx(expected, rel=rel), name


def losses(directory):
    return [row.get("train/loss", row.get("val/loss")) for row in rows(directory)]


def children(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
@pytest.mark.parametrize("whom", ["one process", "torchrun"])
def test_sigterm_saves_and_every_process_leaves_with_75(
    started, tiny_corpus_dir, text_files, tmp_path, whom
):
    command = [*TORCHRUN, *script(tiny_corpus_dir, text_files, "runtime.parallel=ddp")]
    process = started(command, tmp_path)
    folder = tmp_path / "runs/single"
    deadline = time.monotonic() + 200
    while not any(p.stat().st_size for p in folder.glob("*/metrics.jsonl")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    target = process.pid if whom == "torchrun" else children(process.pid)[1]
    os.kill(target, signal.SIGTERM)
    _, error = process.communicate(timeout=200)
    assert process.returncode != 0
    assert error.count("SIGTERM at step") == 1 or whom != "torchrun"  # one line, from the first
    if whom == "one process":
        assert error.count("exitcode  : 75") == 2, error
    (run,) = folder.iterdir()
    assert read_state(run)[0] == "stopped"
    assert list((run / "checkpoints").glob("step-*"))


def script(corpus_dir, text_files, *overrides):
    return [
        str(ROOT / "scripts/train.py"),
        "data=local",
        f"data.paths=[{text_files}]",
        "data.name=tiny",
        f"data.root={corpus_dir.parent}",
        "data.val_fraction=0.1",
        "data.max_epochs=1e9",
        "data.deduplicate=none",
        "model=demo",
        "seq_len.seq_len=32",
        "recipe.batch_tokens=256",
        "evaluation.n_tokens=512",
        "evaluation.points=1",
        "budget.flops=1e13",
        "tracking.points=100000",
        "tracking.wandb=disabled",
        *overrides,
    ]


TORCHRUN_SAYS = {"RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}


def test_the_start_and_the_setting_must_agree():
    assert placement("none", {}).n_processes == 1
    assert placement("fsdp", TORCHRUN_SAYS).rank == 1
    with pytest.raises(ConfigError, match=r"type: torchrun --standalone .* runtime\.parallel=ddp"):
        placement("ddp", {})
    with pytest.raises(ConfigError, match=r"torchrun started 2 processes"):
        placement("none", TORCHRUN_SAYS)


def test_sigterm_is_ignored_before_the_first_process_can_leave(make, monkeypatch):
    alone = {"RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "WORLD_SIZE": "1"}
    for name, value in (alone | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}).items():
        monkeypatch.setenv(name, value)
    meet, at_meeting = Replicas.highest, []

    def noted(team, *values):
        at_meeting.append(signal.getsignal(signal.SIGTERM))
        return meet(team, *values)

    monkeypatch.setattr(Replicas, "highest", noted)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with (
            pytest.raises(InterruptedRunError),
            joined(make({"runtime.parallel": "ddp"}).runtime),
        ):
            raise InterruptedRunError
    finally:
        signal.signal(signal.SIGTERM, before)
    assert at_meeting == [signal.SIG_IGN]  # torchrun sends SIGTERM when one has left


@pytest.mark.parametrize(
    ("overrides", "under_torchrun", "message"),
    [
        (["runtime.parallel=ddp"], False, "type: torchrun"),
        ([], True, "runtime.parallel=none would train the same run in each"),
        (["-m", "seed=0,1", "runtime.parallel=ddp"], True, "is for one run under torchrun"),
        (["-m", "seed=0,1"], True, "torchrun started 2 processes"),
    ],
)
def test_a_wrong_start_is_one_line_and_code_2_before_any_file(
    tmp_path, monkeypatch, started, overrides, under_torchrun, message
):
    if under_torchrun:
        for name, value in (TORCHRUN_SAYS | {"RANK": "0", "LOCAL_RANK": "0"}).items():
            monkeypatch.setenv(name, value)
    process = started([sys.executable, str(ROOT / "scripts/train.py"), *overrides], tmp_path)
    out, error = process.communicate(timeout=200)
    assert process.returncode == 2, error
    assert message in error
    assert error.count("\n") == 1
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("n_rows", "n_devices", "rows_per_pass"), [(8, 3, 2), (1, 4, 9), (7, 2, 1)]
)
def test_every_row_is_trained_once_in_equally_many_passes(n_rows, n_devices, rows_per_pass):
    shares = []
    for rank in range(n_devices):
        one = Team()
        one.rank, one.n_devices = rank, n_devices
        shares.append(one.passes(n_rows, rows_per_pass))
    taken = [i for parts in shares for p in parts if p.share for i in range(n_rows)[p.rows]]
    assert taken == list(range(n_rows))
    assert len({len(parts) for parts in shares}) == 1
    for parts in shares:
        assert all(len(range(n_rows)[p.rows]) <= rows_per_pass for p in parts)
        assert [p.last for p in parts] == [False] * (len(parts) - 1) + [True]
    assert sum(p.share for parts in shares for p in parts) == pytest.approx(1.0)
