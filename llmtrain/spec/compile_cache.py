"""Where torch keeps what it has compiled: one folder for all processes, that stays, and is safe."""

import contextlib
import hashlib
import os
import platform
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from llmtrain.spec.check import check
from llmtrain.spec.disk import make_folder, writing
from llmtrain.spec.errors import ConfigError
from llmtrain.spec.settings import TrainConfig

INDUCTOR, TRITON = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"
KIND = ("model name", "flags", "Features", "CPU implementer", "CPU part")  # of /proc/cpuinfo


@contextlib.contextmanager
def compile_cache(configs: Iterable[TrainConfig]) -> Iterator[None]:
    """Let runs that compile, here or in processes started in a `with` block, share one cache.

    Nothing happens where no run compiles. Raises ConfigError and DiskError.
    """
    folders = cache_folders() if any(config.runtime.compile for config in configs) else {}
    before = {name: os.environ.get(name) for name in folders}
    for name, folder in folders.items():
        _make_private(folder)
        _refuse_shared(name, folder)
        os.environ[name] = str(folder)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def cache_folders() -> dict[str, Path]:
    """Return the folders by their variables: those that the user has set, or ours.

    Raises ConfigError where others could write there: what lies there is unpickled and run.
    """
    inductor = Path(os.environ.get(INDUCTOR) or _users_own() / "llmtrain" / "compiled" / _machine())
    triton = Path(os.environ.get(TRITON) or inductor / "triton")
    found = {INDUCTOR: inductor.absolute(), TRITON: triton.absolute()}
    for name, folder in found.items():
        _refuse_shared(name, folder)
    return found


def why_not_private(folder: Path) -> str | None:
    """Return why others could put files into a folder, which need not be there yet; else None."""
    folder = folder.resolve()
    for path in (folder, *folder.parents):
        try:
            status = path.stat()
        except OSError:
            continue
        if path == folder and status.st_uid not in (os.geteuid(), 0):
            return f"belongs to another user ({status.st_uid})"
        if path == folder and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return "can be written by others"
        if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            return f"can be replaced by others, who can write in {path}"
    return None


def _refuse_shared(name: str, folder: Path) -> None:
    why = why_not_private(folder)
    check(
        why is None,
        f"{name}={folder} {why}, and compiled code is run from there; take their right away "
        f"(chmod go-w), or set {name} to a folder of your own",
    )


def _make_private(folder: Path) -> None:
    """Make a folder and those above it that are missing, all of them the user's alone."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder(folder)
    with writing(folder):
        for path in missing:
            path.chmod(0o700)


def _users_own() -> Path:
    """Return the user's folder for caches. Raises ConfigError for a user without a home."""
    given = Path(os.environ.get("XDG_CACHE_HOME") or "")
    if given.is_absolute():
        return given
    try:
        return Path.home() / ".cache"
    except RuntimeError as error:
        raise ConfigError(
            f"no home folder for compiled code; set {INDUCTOR} to a folder"
        ) from error


def _machine() -> str:
    """Return a name for this kind of processor: code compiled for another one may not run here."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    kind = sorted({line for line in lines if line.startswith(KIND)}) or [platform.processor()]
    digest = hashlib.sha256("\n".join(kind).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:8]}"
