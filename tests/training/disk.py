"""A disk that a process loses: the n-th change below a folder that a thread makes is its last.

A change is a file or folder that is opened to be written, synced, renamed or removed; rows and
tensors also stop in their middle. The thread that takes the steps and the one that saves count
apart, because their changes come in another order every time. A power cut takes what was not
synced, too, once the process is dead: content of files, and names in folders.
"""

import os
import pickle
import shutil
import signal
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from llmtrain.board.mirror import Row
from llmtrain.training import checkpoint
from llmtrain.training.tracking import MetricsFile

EVENTS = {"open": None, "os.mkdir": 2, "os.rename": 2, "os.remove": 1, "os.rmdir": 1}
"""What Python says of changes, and which argument is the descriptor of the folder."""


class Disk:
    """The changes below `root`; change `last` of thread `by` kills the process.

    Where the power is to be cut, `cut` names a file for what that takes.
    """

    counts: ClassVar[Counter[str]] = Counter()

    def __init__(self, root: Path, *, last: int, by: str, cut: Path | None) -> None:
        self.root, self.last, self.by, self.cut = root.resolve(), last, by, cut
        self.lock = threading.RLock()  # from the last change on, other threads make none either
        self.looking_away = False
        self.synced: dict[Path, int] = {}  # bytes on the disk, of the files that hold more
        self.names: list[tuple[Path, Path | None, bytes | None]] = []  # new ones, not on the disk
        fsync, save_file, write_row = os.fsync, checkpoint.save_file, MetricsFile.write

        def noted_fsync(descriptor: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if not path.is_relative_to(self.root):
                fsync(descriptor)
                return
            with self.lock:  # and no more: this disk keeps it without the real one's help
                self.change()
                if path.is_dir():
                    self.names = [name for name in self.names if name[0].parent != path]
                else:
                    self.synced.pop(path, None)

        def noted_save_file(tensors: Mapping[str, Tensor], path: Path) -> None:
            with self.lock:
                self.change()
                self.opened(path, os.O_TRUNC)
            save_file(dict(tensors), path)
            with self.lock:
                self.stop_within(path, 0)

        def noted_row(file: MetricsFile, row: Row) -> None:
            with self.lock:
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
        by = threading.current_thread().name
        Disk.counts[by] += 1
        if (by, Disk.counts[by]) == (self.by, self.last):
            self.looking_away = True
            if self.cut is not None:
                self.cut.write_bytes(pickle.dumps((self.synced, self.names)))
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
        if event in EVENTS:
            with self.lock:
                if not self.looking_away:
                    self.look(event, arguments)

    def look(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note a change, if it is one below the root."""
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


def cut_power(cut: Path) -> None:
    """Take everything that a process, dead by now, had not synced."""
    synced, names = pickle.loads(cut.read_bytes())
    for path, size in synced.items():
        if path.is_file():
            os.truncate(path, min(size, path.stat().st_size))
    for path, source, before in reversed(names):
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
