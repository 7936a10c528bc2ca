"""Metrics: a JSON line first, on disk; wandb gets a copy that can fail without harm."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmtrain.board.identity import settled_mode, wandb_id
from llmtrain.board.mirror import Mirror, NoMirror, Row, WandbMirror
from llmtrain.spec.disk import sync, writing
from llmtrain.spec.errors import CheckpointError
from llmtrain.spec.settings import TrackingConfig
from llmtrain.training.runtime import warn

METRICS_FILE = "metrics.jsonl"
STEP_METRICS = {
    "tokens": {},
    "flops": {"step_metric": "tokens"},
    "train/*": {"step_metric": "tokens"},
    "val/*": {"step_metric": "flops"},
}
"""What each wandb chart has on its x axis; the panels of scripts/dashboard.py say so too."""


class MetricsFile:
    """`metrics.jsonl` of a run: one row per logged step, the truth that everything else copies."""

    def __init__(self, directory: Path, *, length: int) -> None:
        """Open the file and cut it to `length` bytes: what the checkpoint had seen.

        Raises CheckpointError where the file holds less than that.
        """
        self.path = directory / METRICS_FILE
        with writing(self.path):
            self.file = self.path.open("ab", buffering=0)  # what a full disk refuses stays refused
            try:
                sync(directory)
                if (found := self.file.tell()) < length:
                    raise CheckpointError(
                        f"{self.path} has {found} bytes, and {length} when the checkpoint was "
                        f"saved; bring it back, or remove {directory} to train again"
                    )
                self.file.truncate(length)
                self.file.seek(0, os.SEEK_END)
            except BaseException:
                self.file.close()
                raise

    def write(self, row: Row) -> None:
        """Append a row. Raises ValueError for NaN and infinity, which are no measurements."""
        left = (json.dumps(dict(row), allow_nan=False) + "\n").encode()
        with writing(self.path):
            while left:  # a disk that fills up takes a part
                left = left[self.file.write(left) :]

    def length(self) -> int:
        """Return the length in bytes, with everything before it on the disk."""
        with writing(self.path):
            os.fsync(self.file.fileno())
        return self.file.tell()

    def close(self) -> str:
        """Close the file and return its sha256."""
        try:
            self.length()
        finally:
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


def open_mirror(
    config: TrackingConfig,
    *,
    directory: Path,
    run_id: str,
    family: str,
    tags: list[str],
    facts: Mapping[str, Any],
) -> Mirror:
    """Return the mirror that the config asks for; `facts` is the run's configuration, flat.

    The rows that metrics.jsonl holds already are sent first: wandb drops those it has.
    """
    mode = settled_mode(config.wandb)
    if mode == "disabled":
        return NoMirror()
    init = {
        "project": config.project,
        "entity": config.entity,
        "group": family,
        "job_type": "train",
        "name": run_id.rpartition("-")[0],
        "id": wandb_id(family, run_id),
        "resume": "allow",
        "tags": tags,
        "config": dict(facts),
        "dir": str(directory),
    }
    lines = (directory / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    past = (json.loads(line) for line in lines)
    return WandbMirror(init, mode=mode, metrics=STEP_METRICS, rows=past, warn=warn)
