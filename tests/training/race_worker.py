"""Two processes train one run at once, again and again; prints what came of each race as JSON.

argv: configuration as JSON, corpus, number of races. Whoever trains waits at its first report until
the other has left.
"""

import dataclasses
import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from edge import guarded

from llmtrain.corpus.shards import open_corpus
from llmtrain.spec.settings import build_run
from llmtrain.training.loop import train

FORK = multiprocessing.get_context("fork")


def race(config, corpus, barrier, other_left, pipe):
    """Run to the directory with the other process; send what this one met."""
    met = {"pid": os.getpid(), "trained": False}

    def on_progress(_progress):
        met["trained"] = True
        other_left.wait(timeout=300)

    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        barrier.wait()
        begin = time.perf_counter()
        code = guarded(lambda: train(config, corpus, on_progress=on_progress) and None)
        met["seconds"] = time.perf_counter() - begin
        other_left.set()
        said.seek(0)
        pipe.send(met | {"code": code, "said": said.read().decode()})


torch.set_num_threads(1)
first = build_run(json.loads(sys.argv[1]))[0]
corpus, found = open_corpus(Path(sys.argv[2])), []
train(dataclasses.replace(first, seed=10**6), corpus)  # torch loads much late
for seed in range(int(sys.argv[3])):
    config = dataclasses.replace(first, seed=seed)
    barrier, other_left, here = FORK.Barrier(2), FORK.Event(), []
    for _ in range(2):
        pipe, there = FORK.Pipe(duplex=False)
        FORK.Process(target=race, args=(config, corpus, barrier, other_left, there)).start()
        here.append(pipe)
    found.append([pipe.recv() for pipe in here])
print(json.dumps(found))
