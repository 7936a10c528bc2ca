"""Train one run in a child that is killed at random moments, until it is done.

argv: configuration as JSON, corpus, number of kills, seed. Prints the number of lives it took.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from llmtrain.corpus.shards import open_corpus
from llmtrain.spec.rundir import run_directory
from llmtrain.spec.settings import build_run
from llmtrain.training.loop import train

torch.set_num_threads(1)
config = build_run(json.loads(sys.argv[1]))[0]
corpus = open_corpus(Path(sys.argv[2]))
n_kills, metrics = int(sys.argv[3]), run_directory(config) / "metrics.jsonl"
rng = random.Random(int(sys.argv[4]))
for life in range(n_kills + 1):
    child = os.fork()
    if child == 0:
        train(config, corpus)
        os._exit(0)
    if life < n_kills:
        time.sleep(rng.uniform(0.05, 0.6))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    lines = metrics.read_bytes().split(b"\n") if metrics.is_file() else []
    for line in lines[:-1]:  # what is whole is JSON; the last one may be torn
        json.loads(line)
    if status == 0:
        break
print(json.dumps({"lives": life + 1, "status": status}))
