"""A disk that a process loses: the n-th change below a folder is its last.

A change is a file or folder that is opened to be written, synced, renamed or removed; rows and
tensors also stop in their middle. A power cut takes what was not synced, too: content of files, and
names in folders.
"""

import os
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from llmtrain.board.mirror import Row
from llmtrain.training import checkpoint
from llmtrain.training.tracking import MetricsFile

EVENTS = {"open": None, "os.mkdir": 2, "os.rename": 2, "os.remove": 1, "os.rmdir": 1}
"""What Python says of changes, and which argument is the descriptor of the folder."""


class Disk:
    """The changes below `root`; change `last` kills the process, by a power cut if asked."""

    count = 0

    def __init__(self, root: Path, *, last: int, power: bool) -> None:
        self.root, self.last, self.power = root.resolve(), last, power
        self.looking_away = False
        self.synced: dict[Path, int] = {}  # bytes on the disk, of the files that hold more
        self.names: list[tuple[Path, Path | None, bytes | None]] = []  # new ones, not on the disk
        fsync, save_file, write_row = os.fsync, checkpoint.save_file, MetricsFile.write

        def noted_fsync(descriptor: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if not path.is_relative_to(self.root):
                fsync(descriptor)
                return
            self.change()  # and no more: what this disk keeps, it keeps without the real one's help
            if path.is_dir():
                self.names = [name for name in self.names if name[0].parent != path]
            else:
                self.synced.pop(path, None)

        def noted_save_file(tensors: Mapping[str, Tensor], path: Path) -> None:
            self.change()
            self.opened(path, os.O_TRUNC)
            save_file(dict(tensors), path)
            self.stop_within(path, 0)

        def noted_row(file: MetricsFile, row: Row) -> None:
            begin = file.file.tell()
            write_row(file, row)
            self.synced.setdefault(file.path, begin)
            self.stop_within(file.path, begin)

        os.fsync = noted_fsync  # type: ignore[assignment]
        checkpoint.save_file = noted_save_file
        MetricsFile.write = noted_row  # type: ignore[method-assign]
        sys.addaudithook(self.note)

    def change(self) -> None:
        """Count a change; the last one kills."""
        Disk.count += 1
        if Disk.count == self.last:
            self.looking_away = True
            if self.power:
                self.cut()
            os.kill(os.getpid(), signal.SIGKILL)

    def stop_within(self, path: Path, begin: int) -> None:
        """Count a change at which only half of what lies behind `begin` is there."""
        self.looking_away = True
        content = path.read_bytes()
        os.truncate(path, (begin + len(content)) // 2)
        self.change()
        with path.open("r+b") as file:
            file.write(content)
        self.looking_away = False

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Hear of a change that is about to be made."""
        if self.looking_away or event not in EVENTS:
            return
        self.looking_away = True
        path = _path(arguments, EVENTS[event])
        writes = event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if path is not None and path.is_relative_to(self.root) and writes:
            self.change()
            if event == "open":
                self.opened(path, arguments[2])
            elif event == "os.mkdir" and not path.exists():
                self.names.append((path, None, None))
            elif event == "os.rename":
                self.renamed(path, Path(arguments[1]).absolute())
        self.looking_away = False

    def opened(self, path: Path, flags: int) -> None:
        """Note a file whose content, and maybe name, is not on the disk."""
        if not path.exists():
            self.names.append((path, None, None))
        kept = path.stat().st_size if path.exists() and not flags & os.O_TRUNC else 0
        self.synced[path] = min(kept, self.synced.get(path, kept))

    def renamed(self, source: Path, target: Path) -> None:
        """Note a rename that is not on the disk, with the content it replaces."""
        before = target.read_bytes() if target.is_file() else None
        self.names.append((target, source, before))
        for path in [path for path in self.synced if path.is_relative_to(source)]:
            self.synced[target / path.relative_to(source)] = self.synced.pop(path)

    def cut(self) -> None:
        """Take everything that was not synced."""
        for path, size in self.synced.items():
            if path.is_file():
                os.truncate(path, min(size, path.stat().st_size))
        for path, source, before in reversed(self.names):
            if source is not None and path.exists():
                path.rename(source)
                if before is not None:
                    path.write_bytes(before)
            elif path.is_dir():
                shutil.rmtree(path)
            elif source is None:
                path.unlink(missing_ok=True)


def _path(arguments: tuple[Any, ...], folder_at: int | None) -> Path | None:
    if not isinstance(arguments[0], str | os.PathLike):
        return None
    folder = -1 if folder_at is None else arguments[folder_at]
    if folder in (-1, None):
        return Path(arguments[0]).absolute()
    return Path(f"/proc/self/fd/{folder}").readlink() / arguments[0]
