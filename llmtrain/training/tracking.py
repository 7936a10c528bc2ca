"""Metrics: a JSON line first, on disk; wandb gets a copy that can fail without harm."""

import hashlib
import json
import os
import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from llmtrain.spec.settings import TrackingConfig
from llmtrain.training.runtime import warn

METRICS_FILE = "metrics.jsonl"
START_S = 30  # the longest that wandb may take to start, and to finish
Row = Mapping[str, float | int]


class MetricsFile:
    """`metrics.jsonl` of a run: one row per logged step, the truth that everything else copies."""

    def __init__(self, directory: Path, *, length: int) -> None:
        """Open the file and cut it to `length` bytes: what the checkpoint had seen."""
        self.path = directory / METRICS_FILE
        self.file = self.path.open("ab")
        self.file.truncate(length)
        self.file.seek(0, os.SEEK_END)

    def write(self, row: Row) -> None:
        """Append a row. Raises ValueError for NaN and infinity, which are no measurements."""
        line = json.dumps(dict(row), allow_nan=False) + "\n"
        self.file.write(line.encode())
        self.file.flush()

    def length(self) -> int:
        """Return the length in bytes, with everything before it on the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return self.file.tell()

    def close(self) -> str:
        """Close the file and return its sha256."""
        self.length()
        self.file.close()
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


class NoMetricsFile(MetricsFile):
    """Writes nothing: the metrics of a process that does not lead its run."""

    def __init__(self) -> None:
        pass

    def write(self, row: Row) -> None:
        """Drop the row."""

    def length(self) -> int:
        """Return 0."""
        return 0

    def close(self) -> str:
        """Return no hash."""
        return ""


class Mirror(Protocol):
    """Where rows are copied to."""

    def log(self, row: Row) -> None:
        """Take a row."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Take the last values and close."""


class NoMirror:
    """Copies nothing."""

    def log(self, row: Row) -> None:
        """Drop the row."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Do nothing."""


class WandbMirror:
    """A wandb run fed from a thread of its own: it never blocks a step and never fails a run."""

    def __init__(self, settings: dict[str, Any], directory: Path) -> None:
        self.settings = settings
        self.directory = directory
        self.rows: queue.Queue[tuple[str, Any]] = queue.Queue()
        self.thread = threading.Thread(target=self._serve, name="wandb", daemon=True)
        self.thread.start()

    def log(self, row: Row) -> None:
        """Queue a row."""
        self.rows.put(("row", dict(row)))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Queue the summary and wait for the end, START_S seconds at most."""
        self.rows.put(("end", dict(summary)))
        self.thread.join(timeout=START_S)
        if self.thread.is_alive():
            warn(f"wandb did not finish within {START_S} s; metrics.jsonl has everything")

    def _serve(self) -> None:
        try:
            self._copy()
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            warn(f"wandb stopped: {type(error).__name__}: {first}; metrics.jsonl has everything")

    def _copy(self) -> None:
        import wandb  # noqa: PLC0415 - 0.35 s, and the trainer must run without it

        with wandb.init(
            **self.settings,
            dir=str(self.directory),
            settings=wandb.Settings(
                init_timeout=START_S,
                finish_timeout=START_S,
                silent=True,
                save_code=False,
                disable_code=True,
                disable_git=True,
                console="off",
                x_disable_meta=True,  # argv may hold a secret
                x_save_requirements=False,
            ),
            reinit="finish_previous",
        ) as run:
            for name in ("train/*", "val/*"):
                run.define_metric(name, step_metric="tokens")
            run.define_metric("tokens")
            run.define_metric("flops", step_metric="tokens")
            run.define_metric("val/loss", step_metric="flops", summary="min")
            while True:
                kind, values = self.rows.get()
                if kind == "end":
                    run.summary.update(values)
                    return
                run.log(values, step=int(values["step"]))


def open_mirror(
    config: TrackingConfig,
    *,
    directory: Path,
    run_id: str,
    family: str,
    tags: list[str],
    facts: Mapping[str, Any],
) -> Mirror:
    """Return the mirror that the config asks for; `facts` is the run's configuration, flat."""
    key = os.environ.get("WANDB_API_KEY")
    mode = config.wandb
    if mode == "auto":
        mode = "online" if key else "offline"
    if mode == "disabled":
        return NoMirror()
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    identity = hashlib.sha256(f"{family}/{run_id}".encode()).hexdigest()[:16]
    settings = {
        "mode": mode,
        "project": config.project,
        "entity": config.entity,
        "group": family,
        "job_type": "train",
        "name": run_id.rpartition("-")[0],
        "id": identity,
        "resume": "allow",
        "tags": tags,
        "config": dict(facts),
    }
    return WandbMirror(settings, directory)


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as one level with dotted keys."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat.update(flatten(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = item
    return flat
