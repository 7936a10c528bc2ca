"""A run's directory: who holds it, what state it is in, the facts written before step 0."""

import contextlib
import dataclasses
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from llmtrain.spec.build import build
from llmtrain.spec.code import code_identity, environment
from llmtrain.spec.disk import make_folder, write_whole, writing
from llmtrain.spec.errors import ConfigError, MismatchError, RunLockedError
from llmtrain.spec.jsonfile import read_json
from llmtrain.spec.plan import RunPlan, run_id, run_identity
from llmtrain.spec.record import Spent
from llmtrain.spec.redact import redact
from llmtrain.spec.settings import TrainConfig

STATE_FILE = "state.json"
ORIGINS_FILE = "origins.json"
PASSED_BY = ("failed", "quarantined")  # until someone has it tried again
LOOK_S, LOOKS = 0.02, 10  # who only looks at a lock has it for much less
NAME_LOOKS = 100  # who has taken it writes its name next, on a busy machine a little later


def run_directory(config: TrainConfig) -> Path:
    """Return where the run lives: runs_root / name / run_id."""
    return Path(config.runs_root) / config.name / run_id(config)


@contextlib.contextmanager
def hold(directory: Path) -> Iterator[None]:
    """Hold the directory for this process.

    Raises RunLockedError where another one does, and MismatchError where others could write there.
    """
    make_folder(directory)
    if (why := why_not_ours(directory)) is not None:
        raise MismatchError(f"{directory} {why}; move it away or choose another runs_root")
    path = directory / "lock"
    with writing(path):
        file = path.open("a+b", buffering=0)  # what a full disk refuses is not tried again
    with file:
        if not _locked(file):
            raise RunLockedError(f"{directory} is in use by {_owner(file)}; wait for it or stop it")
        since = datetime.now(UTC).isoformat(timespec="seconds")  # for people; nothing reads it
        owner = f"process {os.getpid()} on {socket.gethostname()} since {since}"
        with writing(path):
            file.truncate(0)
            file.write(owner.encode())
        _held.add(file)
        try:
            yield  # closing the file gives the lock back, also when the process dies
        finally:
            _held.discard(file)


_held: set[IO[bytes]] = set()


def _let_go() -> None:
    """Close the locks in a child that was forked: the lock must end with its owner."""
    for file in _held:
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


def _locked(file: IO[bytes]) -> bool:
    """Return whether the lock was free, or will be once those who only look have looked."""
    for look in range(LOOKS):
        if look:
            time.sleep(LOOK_S)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


def _owner(file: IO[bytes]) -> str:
    """Return the name in the lock, as soon as whoever has taken it has written one."""
    for look in range(NAME_LOOKS):
        if look:
            time.sleep(LOOK_S)
        file.seek(0)
        if name := file.read().decode(errors="replace").strip():
            return name
    return "another process"


def why_not_ours(directory: Path) -> str | None:
    """Return why a run's directory cannot be trusted: whoever owns it decides what is in it.

    A link in place of the directory, or of its family's, would lead out of the runs' root.
    """
    for path in (directory.parent, directory, directory / "lock"):
        if path.is_symlink():
            return f"is reached through the link {path}"
    try:
        status = directory.stat()
    except OSError:
        return None
    if status.st_uid not in (os.geteuid(), 0):
        return f"belongs to another user ({status.st_uid})"
    if status.st_mode & stat.S_IWOTH:
        return "can be written by every user"
    return None


def write_json(path: Path, value: Any) -> None:
    """Write JSON by rename: whole or absent. Raises DiskError."""
    write_whole(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_state(
    directory: Path, state: str, reason: str | None = None, spent: Spent | None = None
) -> None:
    """Note how far the run is, why it ended where it failed, and what it has used so far.

    Without `spent` what was noted before stays.
    """
    facts: dict[str, Any] = {"state": state, "reason": reason and redact(reason)}
    if (known := read_spent(directory) if spent is None else spent) is not None:
        facts["spent"] = dataclasses.asdict(known)
    write_json(directory / STATE_FILE, facts)


def read_state(directory: Path) -> tuple[str, str | None]:
    """Return (state, reason); 'planned' where nothing has been written yet."""
    try:
        raw = read_json(directory / STATE_FILE)
        return str(raw["state"]), raw["reason"]
    except (OSError, ValueError, KeyError, TypeError):
        return "planned", None


def read_spent(directory: Path) -> Spent | None:
    """Return what the run had used when its state was last noted; None where that does not say."""
    try:
        return build(Spent, read_json(directory / STATE_FILE)["spent"], "spent")
    except (OSError, ValueError, KeyError, TypeError, ConfigError):
        return None


def standing(directory: Path) -> tuple[str, str | None]:
    """Return (state, reason), 'stopped' where a run was begun and no process is at it."""
    state, reason = read_state(directory)
    if state not in ("planned", "stopped", *PASSED_BY) and not is_held(directory):
        return "stopped", "run the sweep again to go on"
    return state, reason


def note_done(directory: Path) -> None:
    """Note that a run is done, where that has not been noted: after a kill behind its record."""
    if read_state(directory)[0] != "done":
        write_state(directory, "done")


def begin(directory: Path, config: TrainConfig, plan: RunPlan, data_id: str) -> None:
    """Write config.json and plan.json, or check that they describe this very run.

    origins.json gets the code and the environment of every start that differs from the one before.
    Raises MismatchError where the directory holds another run, or the data have changed since.
    """
    path = directory / "config.json"
    if path.is_file():
        found = read_json(path)
        if found["data_id"] != data_id:
            raise MismatchError(
                f"{directory} was begun on data {found['data_id'][:12]}, now it is {data_id[:12]}; "
                "bring the old data back or move the folder away"
            )
        if found["identity"] != json.loads(json.dumps(run_identity(config))):
            raise MismatchError(f"{directory} holds another configuration; move the folder away")
    facts = {
        "run_id": run_id(config),
        "data_id": data_id,
        "identity": run_identity(config),
        "config": dataclasses.asdict(config),
    }
    write_json(path, facts)
    write_json(directory / "plan.json", dataclasses.asdict(plan))
    _note_origin(directory / ORIGINS_FILE)


def _note_origin(path: Path) -> None:
    origins = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    origin = {"code": code_identity(), "environment": environment()}
    if not origins or origins[-1] != origin:
        write_json(path, [*origins, origin])


def is_held(directory: Path) -> bool:
    """Return whether a process holds the directory now."""
    path = directory / "lock"
    if not path.is_file():
        return False
    with path.open(encoding="utf-8") as file:
        try:  # shared, so that two who look do not take each other for an owner
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
