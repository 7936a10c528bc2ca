"""wandb's local run files, read without wandb's server.

The framing is LevelDB's log (32 KiB blocks, records in pieces); the content is wandb's protobuf,
a private module of wandb: this file is all that depends on it.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmtrain.board.fetched import FetchedRun, plain_row
from llmtrain.spec.errors import ConfigError

FILES = ("*run-*/run-*.wandb", "wandb/*run-*/run-*.wandb", "*/wandb/*run-*/run-*.wandb")
BLOCK, HEADER = 32768, 7
WHOLE, FIRST, LAST = 1, 2, 4


def offline_files(folder: Path) -> list[Path]:
    """Return the run files below a folder of `offline-run-*`, a `wandb` folder, or a sweep."""
    return sorted({path for pattern in FILES for path in folder.glob(pattern) if path.is_file()})


def read_offline_runs(paths: list[Path]) -> list[FetchedRun]:
    """Return the runs of these files; of two files of one run, the later one."""
    runs = (read_offline(path) for path in paths)
    return list({run.wandb_id: run for run in runs}.values())


def read_offline(path: Path) -> FetchedRun:
    """Return the run of one `.wandb` file; a file cut short gives what is whole in it.

    Raises ConfigError for a file that holds no run.
    """
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined] # noqa: PLC0415

    head, state = None, "not finished"
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    steps: dict[int, dict[str, Any]] = {}
    for content in _contents(path.read_bytes()):
        record = Record.FromString(content)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            head = record.run
            config |= _items(head.config.update)
        elif kind == "history":
            row = _items(record.history.item)
            steps.setdefault(int(row.get("_step", 0)), {}).update(plain_row(row))
        elif kind == "summary":
            summary |= _items(record.summary.update)
        elif kind == "exit":
            state = "finished" if record.exit.exit_code == 0 else "failed"
    if head is None:
        raise ConfigError(f"{path} holds no wandb run")
    return FetchedRun(
        wandb_id=head.run_id,
        name=head.display_name,
        state=state,
        group=head.run_group,
        job_type=head.job_type,
        config=config,
        summary=summary,
        rows=tuple(steps[step] for step in sorted(steps)),
    )


def _items(items: Any) -> dict[str, Any]:
    """Return key-value pairs; nested keys are joined by a slash."""
    return {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}


def _contents(data: bytes) -> Iterator[bytes]:
    """Yield the records of a LevelDB log until its end or its first damage."""
    if data[:4] != b":W&B":
        return
    at, pieces = HEADER, b""
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        piece = data[at + HEADER : at + HEADER + length]
        if not WHOLE <= kind <= LAST or len(piece) < length:
            return
        pieces = piece if kind in (WHOLE, FIRST) else pieces + piece
        if kind in (WHOLE, LAST):
            yield pieces
        at += HEADER + length
