"""Runs that came from wandb, laid down as the folder of a sweep that the analysis reads."""

import dataclasses
import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain.spec.disk import make_folder, write_whole
from llmtrain.spec.errors import ConfigError, MismatchError
from llmtrain.spec.expense import CONFIG_FILE
from llmtrain.spec.record import RunRecord, build_record, write_record

METRICS_FILE, STATE_FILE = "metrics.jsonl", "state.json"
MARK = "fetched.json"
UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchedRun:
    """One run as wandb has it."""

    wandb_id: str
    name: str
    state: str
    """finished, or wandb's word for what it is instead."""
    group: str
    job_type: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...]
    """The whole history, in order of its steps."""


def record_of(run: FetchedRun, metrics_sha256: str) -> RunRecord:
    """Return the record that a run's summary holds, with the hash of its fetched history.

    Raises MismatchError for a run that is not finished, lacks a key, holds NaN, or whose history
    is not whole.
    """
    if run.state != "finished":
        raise MismatchError(f"wandb state {run.state}")
    raw: dict[str, Any] = {}
    for field in dataclasses.fields(RunRecord):
        within = f"{field.name}/"
        nested = {k.removeprefix(within): v for k, v in run.summary.items() if k.startswith(within)}
        if field.name in run.summary or nested:
            raw[field.name] = nested or run.summary[field.name]
    if not raw:
        raise MismatchError("its summary holds no record of llmtrain")
    record = build_record(raw | {"metrics_sha256": metrics_sha256})
    if not math.isfinite(record.val_loss):
        raise MismatchError(f"val_loss {record.val_loss!r}")
    last = run.rows[-1] if run.rows else {}
    if last.get("step") != record.n_steps:
        raise MismatchError(f"history ends at step {last.get('step')} of {record.n_steps}")
    if last.get("val/loss") != record.val_loss:
        raise MismatchError(f"history ends with val/loss {last.get('val/loss')}, not val_loss")
    return record


def lay_down(runs: Iterable[FetchedRun], folder: Path) -> Path:
    """Write a folder a run: record and metrics, or state.json with the reason it has none.

    What an earlier call left there is replaced; raises ConfigError for a folder of other origin.
    """
    if folder.exists() and not (folder / MARK).is_file():
        raise ConfigError(f"{folder} was not fetched from wandb; move it away or set out=DIR")
    for old in folder.glob(f"*/{STATE_FILE}"):
        shutil.rmtree(old.parent)
    make_folder(folder)
    write_whole(folder / MARK, "{}\n")
    for run in sorted(runs, key=lambda run: run.state != "finished"):
        _lay_down_run(run, folder)
    return folder


def _lay_down_run(run: FetchedRun, folder: Path) -> None:
    name = UNSAFE.sub("_", f"{run.summary.get('run_id') or run.name}").strip(".") or "run"
    target = folder / name[:100]
    if target.exists():
        target = folder / f"{name[:100]}-{UNSAFE.sub('_', run.wandb_id)[:100]}"
        if run.state == "finished":
            run = dataclasses.replace(run, state="finished, but the second run of this run_id")
    make_folder(target)
    lines = "".join(json.dumps(dict(row), sort_keys=True) + "\n" for row in run.rows)
    write_whole(target / METRICS_FILE, lines)
    own = {k.removeprefix("bill/"): v for k, v in run.config.items() if k.startswith("bill/")}
    config = json.dumps({"config": {"bill": own}}, sort_keys=True)  # what its cost is counted by
    write_whole(target / CONFIG_FILE, config + "\n")
    state = {"state": "done"}
    try:
        record = record_of(run, hashlib.sha256(lines.encode()).hexdigest())
        write_record(target, record)
    except MismatchError as error:
        state = {"state": str(error)}
    write_whole(target / STATE_FILE, json.dumps(state) + "\n")


def plain_row(items: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of a row of history without wandb's own columns."""
    return {
        key: value
        for key, value in items.items()
        if not key.startswith("_") and isinstance(value, int | float) and math.isfinite(value)
    }
