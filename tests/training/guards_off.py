"""The guards that keep a resumed run equal, each switched off: what a test must then see."""

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmtrain.spec import disk
from llmtrain.training import checkpoint, run, runtime, saver, session, tracking
from llmtrain.training.checkpoint import Snapshot
from llmtrain.training.session import Session
from llmtrain.training.tracking import MetricsFile

restore, write = Session.restore, checkpoint.write_checkpoint
open_metrics = MetricsFile.__init__


def restored(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Have every resume see a changed state."""

    def changed(one: Session, state: dict[str, Any]) -> None:
        restore(one, state | change(state))

    Session.restore = changed  # type: ignore[method-assign]


def cursor() -> None:
    """Resume one step too early."""
    restored(lambda state: {"step": state["step"] - 1})


def recent() -> None:
    """Forget the losses since the last row."""
    restored(lambda _state: {"recent": []})


def tail() -> None:
    """Forget the sum of the last losses."""
    restored(lambda _state: {"tail": [0.0, 0]})


def moments() -> None:
    """Forget what the optimizer gathered."""

    def without(state: dict[str, Any]) -> dict[str, Any]:
        return {"optimizer": state["optimizer"] | {"state": {}}}

    restored(without)


def random() -> None:
    """Draw dropout from a stream that begins anew with every life."""
    calls = itertools.count()
    session.step_seed = lambda *_: next(calls)


def rows() -> None:
    """Leave the rows behind the checkpoint."""

    def uncut(file: MetricsFile, directory: Path, *, length: int) -> None:
        path = directory / "metrics.jsonl"
        open_metrics(file, directory, length=path.stat().st_size if path.exists() else length)

    MetricsFile.__init__ = uncut  # type: ignore[method-assign]


def aside() -> None:
    """Write checkpoints in place."""

    def in_place(folder: Path, taken: Snapshot, *, run_id: str, step: int, keep: int) -> Path:
        target = folder / f"step-{step:09d}"
        target.mkdir(parents=True)
        checkpoint.save_file(taken.tensors, target / checkpoint.TENSORS)
        (target / checkpoint.STATE).write_text(json.dumps(taken.tree))
        names = (checkpoint.TENSORS, checkpoint.STATE)
        files = {name: checkpoint._describe(target / name) for name in names}
        manifest = {"run_id": run_id, "step": step, "files": files}
        (target / checkpoint.MANIFEST).write_text(json.dumps(manifest))
        checkpoint._prune(target, keep)
        return target

    saver.write_checkpoint = in_place  # type: ignore[assignment]


def save_first() -> None:
    """Prune before the save."""

    def prune_first(folder: Path, taken: Snapshot, *, keep: int, **rest: Any) -> Path:
        for path in sorted(folder.glob("step-*"), reverse=True)[keep - 1 :]:
            shutil.rmtree(path)
        return write(folder, taken, keep=keep, **rest)

    saver.write_checkpoint = prune_first  # type: ignore[assignment]


def sweeping() -> None:
    """Leave what a killed save left."""
    run.clear_leftovers = lambda _folder: None


def sync() -> None:
    """Trust the kernel to have written."""
    os.fsync = lambda _descriptor: None  # type: ignore[assignment]


def sync_of_files() -> None:
    """Wait for names alone."""
    _sync_only(Path.is_dir)


def sync_of_folders() -> None:
    """Wait for content alone."""
    _sync_only(Path.is_file)


def _sync_only(which: Callable[[Path], bool]) -> None:
    whole = disk.sync

    def partly(path: Path) -> None:
        if which(path):
            whole(path)

    disk.sync = checkpoint.sync = tracking.sync = partly


def handlers() -> None:
    """Leave signals to the system."""
    runtime.handled = lambda *_: contextlib.nullcontext()


OFF: dict[str, Callable[[], None]] = {
    "cursor": cursor, "recent": recent, "tail": tail, "moments": moments, "random": random,
    "rows": rows, "aside": aside, "save_first": save_first, "sweeping": sweeping, "sync": sync,
    "sync_of_files": sync_of_files, "sync_of_folders": sync_of_folders,
    "handlers": handlers,
}  # fmt: skip
