"""What a disk refuses, in one line; files that are whole or absent; room before a run starts."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from llmtrain.spec.errors import ConfigError, DiskError

REFUSALS = {
    errno.ENOSPC: ("disk full", "free space"),
    errno.EDQUOT: ("disk quota used up", "free space or have the quota raised"),
    errno.EFBIG: ("limit on the size of files reached (ulimit -f)", "raise it"),
    errno.EROFS: ("read-only file system", "have it mounted writable or choose another folder"),
    errno.EACCES: ("permission denied", "change the owner or the mode, or choose another folder"),
    errno.EPERM: ("not permitted", "change the owner or the mode, or choose another folder"),
    errno.EIO: ("the disk failed (input/output error)", "check it or choose another folder"),
}
"""Why a file system does not take what is written, and what a person can do."""


def disk_error(error: OSError, path: Path | None = None) -> DiskError | None:
    """Return the error in one line with the path and the remedy; None for any other OSError."""
    if error.errno not in REFUSALS:
        return None
    what, remedy = REFUSALS[error.errno]
    where = path or error.filename or "the output"
    return DiskError(f"{where}: {what}; {remedy}, then run the same command again")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise DiskError, with the path, for what the disk refuses in a `with` block."""
    try:
        yield
    except OSError as error:
        if (told := disk_error(error, path)) is None:
            raise
        raise told from error


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, unless it is there; a power cut leaves what was made.

    Raises ConfigError where a file is in the way, and DiskError.
    """
    try:
        with writing(path):
            missing = [folder for folder in (path, *path.parents) if not folder.exists()]
            path.mkdir(parents=True, exist_ok=True)
            for folder in missing:
                sync(folder.parent)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{path}: a file is in the way; choose another folder") from error


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file aside, sync it, rename it: after a kill or a power cut the old or the new one.

    Which of the two a power cut leaves is certain once the folder is synced. Only the sync of the
    file tells whether the disk has room: some file systems find out that late. Raises DiskError.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        try:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
            sync(temporary)
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
