"""Checkpoints: folders of safetensors and JSON with a hashed manifest, whole or absent."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmtrain.spec.durable import make_folder, sync
from llmtrain.spec.errors import CheckpointError, MismatchError
from llmtrain.spec.jsonfile import read_json

UNREADABLE = (SafetensorError, OSError, ValueError, KeyError, TypeError)
MANIFEST = "manifest.json"
TENSORS = "tensors.safetensors"
STATE = "state.json"
FOREIGN = "belongs to run"


def save_checkpoint(
    folder: Path, *, run_id: str, step: int, state: dict[str, Any], keep: int | None
) -> Path:
    """Write `state` (nested dicts and lists of tensors and JSON values) as `folder`/step-N.

    Built aside, synced, renamed, read back and checked; only then are older ones removed, down to
    `keep`; None keeps all. Nothing is pickled.
    """
    make_folder(folder)
    aside = folder / f".tmp-{step:09d}-{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    tensors: dict[str, Tensor] = {}
    tree = _pack(state, "", tensors)
    save_file(tensors, aside / TENSORS)
    (aside / STATE).write_text(json.dumps(tree, allow_nan=False), encoding="utf-8")
    files = {name: _describe(aside / name) for name in (TENSORS, STATE)}
    manifest = {"run_id": run_id, "step": step, "files": files}
    (aside / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in [*aside.iterdir(), aside]:
        sync(path)
    target = folder / f"step-{step:09d}"
    if target.exists():  # a damaged one that was passed over
        target.rename(folder / f".old-{step:09d}-{os.getpid()}")
    aside.rename(target)
    sync(folder)
    problem = _problem(target, run_id)
    if problem is not None:
        raise CheckpointError(f"{target}: {problem} right after writing; check the disk")
    _prune(target, keep)
    return target


def load_checkpoint(folder: Path, *, run_id: str) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the state of the newest sound checkpoint, and a line for each one passed over.

    The state is None where there is no checkpoint at all. Raises CheckpointError where there are
    some and none is sound: a run never starts afresh in silence.
    """
    found = sorted(folder.glob("step-*"), reverse=True) if folder.is_dir() else []
    rejected: list[str] = []
    for path in found:
        problem = _problem(path, run_id)
        if problem is None:
            try:
                return _read(path), rejected
            except UNREADABLE as error:
                problem = f"unreadable ({type(error).__name__}: {error})"  # with hashes that agree
        rejected.append(f"{path}: {problem}; passed over")
    if rejected:
        raise CheckpointError(
            f"no sound checkpoint in {folder}: {rejected[0]}; remove the folder to train again"
        )
    return None, []


def read_checkpoint(path: Path, *, run_id: str) -> dict[str, Any]:
    """Return the state in one checkpoint.

    Raises MismatchError for another owner's, and CheckpointError for a damaged one.
    """
    problem = _problem(path, run_id)
    if problem is None:
        try:
            return _read(path)
        except UNREADABLE as error:
            problem = f"unreadable ({type(error).__name__}: {error})"
    if problem.startswith(FOREIGN):
        raise MismatchError(f"{path} {problem}, not to {run_id}; it is not used: remove it")
    raise CheckpointError(f"{path}: {problem}; remove it")


def clear_leftovers(folder: Path) -> None:
    """Remove what a save that was killed left behind; for the one process that saves there."""
    for path in [*folder.glob(".tmp-*"), *folder.glob(".old-*")]:
        shutil.rmtree(path)


def is_sound(path: Path, *, run_id: str) -> bool:
    """Return whether a whole checkpoint of this owner is there."""
    return _problem(path, run_id) is None


def _read(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = _unpack(read_json(path / STATE), load_file(path / TENSORS))
    return state


def _problem(path: Path, run_id: str) -> str | None:
    """Return what is wrong with a checkpoint, or None."""
    try:
        manifest = read_json(path / MANIFEST)
        if manifest["run_id"] != run_id:
            return f"{FOREIGN} {manifest['run_id']}"
        if f"step-{manifest['step']:09d}" != path.name:
            return f"holds step {manifest['step']}"
        for name in (TENSORS, STATE):
            if _describe(path / name) != manifest["files"][name]:
                return f"{name} does not match its hash"
    except UNREADABLE as error:
        return f"unreadable ({type(error).__name__}: {error})"
    return None


def _prune(newest: Path, keep: int | None) -> None:
    """Leave the `keep` newest up to the one just verified; what is newer was passed over."""
    folder = newest.parent
    if keep is not None:
        upto = sorted(path for path in folder.glob("step-*") if path.name <= newest.name)
        for path in upto[:-keep]:  # by rename, so that none is ever half there
            path.rename(folder / f".old-{path.name.removeprefix('step-')}-{os.getpid()}")
    clear_leftovers(folder)


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


# Dictionaries become lists of pairs, because optimizer states have integer keys and JSON has none.
def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {"tensor": path}
    if isinstance(value, dict):
        return {"dict": [[k, _pack(v, f"{path}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_pack(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]}
    return value


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "dict" in value:
        return {k: _unpack(v, tensors) for k, v in value["dict"]}
    return [_unpack(v, tensors) for v in value["list"]]
