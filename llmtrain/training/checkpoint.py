"""Checkpoints: folders of safetensors and JSON with a hashed manifest, whole or absent."""

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmtrain.spec.branching import FORMAT
from llmtrain.spec.check import shown
from llmtrain.spec.disk import make_folder, sync, writing
from llmtrain.spec.errors import CheckpointError, MismatchError
from llmtrain.spec.jsonfile import read_json

UNREADABLE = (SafetensorError, OSError, ValueError, KeyError, TypeError)
OS_ERROR = re.compile(r"\(os error (\d+)\)")
MANIFEST = "manifest.json"
TENSORS = "tensors.safetensors"
STATE = "state.json"
FOREIGN = "belongs to run"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state that no step changes any more, in memory of its own on the host."""

    tree: dict[str, Any]
    """JSON values, and the names of the tensors where they belong."""
    tensors: dict[str, Tensor]


def snapshot(state: dict[str, Any]) -> Snapshot:
    """Return a copy of `state` (nested dicts and lists of tensors and JSON values).

    A GPU's tensors go into page-locked memory, and the host waits once for all of them.
    """
    tensors: dict[str, Tensor] = {}
    tree = _pack(state, "", tensors)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return Snapshot(tree, tensors)


def save_checkpoint(
    folder: Path, *, run_id: str, step: int, state: dict[str, Any], keep: int | None
) -> Path:
    """Write `state` as `folder`/step-N, as `write_checkpoint` does."""
    return write_checkpoint(folder, snapshot(state), run_id=run_id, step=step, keep=keep)


def write_checkpoint(
    folder: Path, taken: Snapshot, *, run_id: str, step: int, keep: int | None
) -> Path:
    """Write what was taken as `folder`/step-N; touches nothing else, so that any thread can do it.

    Built aside, synced, renamed, read back and checked; only then are older ones removed, down to
    `keep`; None keeps all. Nothing is pickled. A save that fails, as on a full disk (DiskError),
    gives its space back.
    """
    aside = folder / f".tmp-{step:09d}-{os.getpid()}"
    try:
        with writing(folder / f"step-{step:09d}"):
            return _write(folder, aside, taken, run_id=run_id, step=step, keep=keep)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write(
    folder: Path, aside: Path, taken: Snapshot, *, run_id: str, step: int, keep: int | None
) -> Path:
    make_folder(folder)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    _write_tensors(taken.tensors, aside / TENSORS)
    whose = {"format": FORMAT, "run_id": run_id, "step": step}
    (aside / STATE).write_text(json.dumps(whose | taken.tree, allow_nan=False), encoding="utf-8")
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
                return _read(path, run_id), rejected
            except ValueError as error:
                problem = str(error)
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
            return _read(path, run_id)
        except ValueError as error:
            problem = str(error)
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


def _read(path: Path, run_id: str) -> dict[str, Any]:
    """Return the state in files whose hashes agree. Raises ValueError with what is wrong yet."""
    name = STATE
    try:
        tree = read_json(path / STATE)
        if tree["format"] != FORMAT:
            raise ValueError(f"has format {shown(tree['format'])}, this version reads {FORMAT}")
        if (tree["run_id"], f"step-{tree['step']:09d}") != (run_id, path.name):
            raise ValueError(f"is of run {shown(tree['run_id'])}, step {shown(tree['step'])}")
        name = TENSORS
        tensors = load_file(path / TENSORS)
        name = STATE
        state: dict[str, Any] = _unpack(tree, tensors)
    except UNREADABLE as error:
        raise ValueError(_unreadable(name, error)) from error
    return state


def _problem(path: Path, run_id: str) -> str | None:
    """Return what is wrong with a checkpoint and with which file, in one line, or None."""
    name = MANIFEST
    try:
        manifest = read_json(path / MANIFEST)
        if manifest["run_id"] != run_id:
            return f"{FOREIGN} {shown(manifest['run_id'])}, as its {MANIFEST} says"
        if f"step-{manifest['step']:09d}" != path.name:
            return f"{MANIFEST} is of step {shown(manifest['step'])}"
        hashes = {name: manifest["files"][name] for name in (TENSORS, STATE)}
        for name, expected in hashes.items():
            if _describe(path / name) != expected:
                return f"{name} does not match its hash in {MANIFEST}"
    except UNREADABLE as error:
        return _unreadable(name, error)
    return None


def _unreadable(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    return f"{name} cannot be used ({type(error).__name__}: {reason})"


def _prune(newest: Path, keep: int | None) -> None:
    """Leave the `keep` newest up to the one just verified; what is newer was passed over."""
    folder = newest.parent
    if keep is not None:
        upto = sorted(path for path in folder.glob("step-*") if path.name <= newest.name)
        for path in upto[:-keep]:  # by rename, so that none is ever half there
            path.rename(folder / f".old-{path.name.removeprefix('step-')}-{os.getpid()}")
    clear_leftovers(folder)


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors as the other files are: errors are OSErrors, the umask decides who may read."""
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # it has the number only in its text
        if (number := OS_ERROR.search(str(error))) is None:
            raise
        raise OSError(int(number[1]), str(error)) from error
    path.chmod(mode)  # the library puts a private file in place of ours


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


# Dictionaries become lists of pairs, because optimizer states have integer keys and JSON has none.
def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = _copy(value)
        return {"tensor": path}
    if isinstance(value, dict):
        return {"dict": [[k, _pack(v, f"{path}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_pack(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]}
    return value


def _copy(tensor: Tensor) -> Tensor:
    """Return a contiguous copy on the host; a GPU's may still be under way."""
    on_gpu = tensor.is_cuda
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=on_gpu)
    return copy.copy_(tensor.detach(), non_blocking=on_gpu)


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "dict" in value:
        return {k: _unpack(v, tensors) for k, v in value["dict"]}
    return [_unpack(v, tensors) for v in value["list"]]
