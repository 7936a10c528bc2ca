"""A disk that stops taking anything after so many operations, for the files below one folder."""

import builtins
import io
import os
import re
import resource
import threading
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

OPERATIONS = ("mkdir", "rename", "replace", "fsync")


class BadDisk:
    """Counts what is done below `folder`, and refuses all of it after `allowed` operations.

    Operations: opening a file to write, each write, fsync, rename, making a folder. The first write
    that is refused leaves its first half behind, as a disk that fills up does.
    """

    def __init__(self, monkeypatch, folder, number, allowed=10**9):
        self.folder, self.number, self.allowed, self.done = str(folder), number, allowed, 0
        self.open, self.lock = io.open, threading.Lock()
        self.spoiled = False
        monkeypatch.setattr(io, "open", self.opened)
        monkeypatch.setattr(builtins, "open", self.opened)
        for name in OPERATIONS:
            monkeypatch.setattr(os, name, self.watched(getattr(os, name)))
        monkeypatch.setattr("llmtrain.training.checkpoint.save_file", self.save_tensors)

    def is_mine(self, file):
        if isinstance(file, int):
            file = Path(f"/proc/self/fd/{file}").readlink()
        return os.fspath(file).startswith(self.folder)

    def is_refused(self):
        with self.lock:  # of the thread that takes the steps and the one that saves
            self.done += 1
            return self.done > self.allowed

    def error(self, file=None):
        return OSError(self.number, os.strerror(self.number), file and os.fspath(file))

    def watched(self, real):
        def call(file, *rest, **options):
            if self.is_mine(file) and self.is_refused():
                raise self.error(None if isinstance(file, int) else file)
            return real(file, *rest, **options)

        return call

    def opened(
        self, file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, **rest
    ):
        if not set(mode) & set("wax+") or not self.is_mine(file):
            return self.open(file, mode, buffering, encoding, errors, newline, **rest)
        if self.is_refused():
            raise self.error(file)
        raw = _Raw(self, file, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        binary = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
        return binary if "b" in mode else io.TextIOWrapper(binary, encoding, errors, newline)

    def save_tensors(self, tensors, path):
        """Save as safetensors does; refused, it meets a real limit and the number is ours.

        Python ignores the signal that comes with the limit.
        """
        if not self.is_refused():
            return save_file(tensors, path)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            return save_file(tensors, path)
        except SafetensorError as error:
            found = re.sub(r"os error \d+", f"os error {self.number}", str(error))
            assert found.endswith(f"(os error {self.number})")
            raise SafetensorError(found) from None
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


class _Raw(io.FileIO):
    def __init__(self, disk, file, mode):
        super().__init__(file, mode)
        self.disk = disk

    def write(self, content):
        if self.disk.is_refused():
            if not self.disk.spoiled:
                self.disk.spoiled = True
                super().write(memoryview(content)[: len(content) // 2])
            raise self.disk.error()
        return super().write(content)


def half_written(folder):
    """Return files with a name that something could read, and no whole content."""
    return [
        path
        for path in Path(folder).rglob("*.json")
        if not path.name.startswith(".") and path.read_bytes()[-2:].strip()[-1:] not in (b"}", b"]")
    ]
