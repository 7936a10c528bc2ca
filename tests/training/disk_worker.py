"""Train one run in children that meet a disk without room; prints how each one left, as JSON.

argv: configuration as JSON, corpus, and either `limits N...` (RLIMIT_FSIZE) or `tmpfs N...`: the
runs' root is then a disk of 2 MiB that is filled up to N bytes at step 5. After each, the same
command is given again with room.
"""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from edge import guarded

from llmtrain.corpus.shards import open_corpus
from llmtrain.spec.rundir import run_directory
from llmtrain.spec.settings import build_run
from llmtrain.training.loop import train

STEP = 5


def in_child(action):
    """Return the exit code and the stderr of an action in a process of its own."""
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), 2)
            os._exit(guarded(action))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        return {"code": code, "said": said.read().decode()}


def limited(limit):
    """Keep every file of this process below a size."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def fill(folder, free):
    """Leave `free` bytes on the disk of a folder."""
    with (folder / "ballast").open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        file.truncate(max(0, file.tell() - free))


torch.set_num_threads(1)
config = build_run(json.loads(sys.argv[1]))[0]
corpus, what, root = open_corpus(Path(sys.argv[2])), sys.argv[3], Path(config.runs_root)


def meet(number):
    """Train until the disk takes no more."""

    def on_progress(progress):
        if what == "tmpfs" and progress.step == STEP:
            fill(root, number)

    if what == "limits":
        limited(number)
    train(config, corpus, on_progress=on_progress)


if what == "tmpfs":
    root.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", root], check=True)
found = []
for number in map(int, sys.argv[4:]):
    first = in_child(lambda number=number: meet(number))
    (root / "ballast").unlink(missing_ok=True)
    again = in_child(lambda: train(config, corpus) and None)
    rows = (run_directory(config) / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(row).get("train/loss") for row in rows]
    found.append({"first": first, "again": again, "losses": losses})
    shutil.rmtree(run_directory(config))
print(json.dumps(found))
