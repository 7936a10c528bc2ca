"""What wandb costs a run: the same run of a minute with and without it."""

import contextlib
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge import compose

from benches import Bench, Facts, Seconds
from llmtrain.board import mirror
from llmtrain.corpus.prepare import prepare
from llmtrain.corpus.shards import open_corpus
from llmtrain.spec.settings import build_run

RUN = ("model=w64d4", "budget.flops=2e12", "checkpoint.every_s=3600", "tracking.progress=false")


def time_both(_keys: Mapping[str, Any]) -> Seconds:
    """Return seconds without and with wandb (offline), and what wandb's processes computed."""
    seconds = {mode: _train(mode) for mode in ("disabled", "offline")}
    begin = time.perf_counter()
    courier = mirror.Process({})
    start = time.perf_counter() - begin
    courier.stop()
    wall, cpu = seconds["disabled"][:2]
    wall_with, cpu_with, wandb = seconds["offline"]
    return {
        "run, wandb disabled": wall,
        "run, wandb offline": wall_with,
        "trainer's processor, wandb disabled": cpu,
        "trainer's processor, wandb offline": cpu_with,
        "wandb's processors": wandb,
        "start of a sweep waits": start,
    }


def shares(seconds: Seconds) -> Facts:
    """Return ratios of processor seconds: on a shared machine wall seconds say less."""
    alone = seconds["trainer's processor, wandb disabled"]
    beside = seconds["trainer's processor, wandb offline"]
    return {
        "change of the trainer's processor time, %": 100 * (beside / alone - 1),
        "processor time of wandb's own processes beside it, %": 100
        * seconds["wandb's processors"]
        / alone,
    }


def _train(mode: str) -> tuple[float, float, float]:
    """Return seconds of a run: on the clock, of its processor, of wandb's processes."""
    from llmtrain.training.loop import train  # noqa: PLC0415 - torch, only here

    with tempfile.TemporaryDirectory() as folder:
        raw = compose("train", [*RUN, f"runs_root={folder}", f"tracking.wandb={mode}"])
        config = build_run(raw)[0]
        corpus = open_corpus(prepare(config.data))
        begin, busy = time.perf_counter(), time.process_time()
        train(config, corpus)
        wall, busy = time.perf_counter() - begin, time.process_time() - busy
        return wall, busy, _wandb_seconds()


def _wandb_seconds() -> float:
    """Return the processor seconds of the idle courier and of wandb's own process (Linux)."""
    courier = mirror.Process.current
    if courier is None:
        return 0.0
    pid, total = courier.child.pid, 0.0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            command = path.with_name("cmdline").read_bytes()
            if path.parent.name == str(pid) or f"--pid\0{pid}\0".encode() in command:
                fields = path.read_text(encoding="utf-8").rpartition(")")[2].split()
                total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    mirror.Process.stop_idle()
    return total


BENCH = Bench(keys={}, run=time_both, facts=shares, packages=("torch", "wandb"))
