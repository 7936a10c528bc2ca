"""Train one run in a process of its own: argv is its configuration as JSON and its corpus."""

import json
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
steps: list[float] = []
begin = time.monotonic()
train(config, corpus, on_progress=lambda _: steps.append(time.monotonic()))
seconds = {"start": steps[0] - begin, "last_step": steps[-1]}
print(json.dumps(seconds | {"directory": str(run_directory(config))}))
