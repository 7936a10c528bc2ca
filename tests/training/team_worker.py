"""What torchrun starts in test_parallel.py: trains a list of runs and notes how each ended.

Arguments: a JSON file with {"corpus": folder, "out": folder, "runs": [{"config": nested dictionary,
"stop": [rank, step] or null, "fault": [rank, step] or []}]}; a fault is a NaN in that process.
Writes out/<rank>.json: [exit code, message or loss] of every run.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from llmtrain.corpus.shards import open_corpus
from llmtrain.spec.build import build
from llmtrain.spec.errors import LlmtrainError
from llmtrain.spec.settings import TrainConfig
from llmtrain.training import guard
from llmtrain.training.loop import train
from llmtrain.training.session import Session

RANK = int(os.environ["RANK"])


BACKWARD = Session._backward


def poisoned(fault):
    """Return the backward pass, with a NaN in one token's embedding in one process and step."""
    rank, step = fault or (None, None)

    def backward(session, stage, *batch):
        def poison(_module, _inputs, out):
            return out + torch.zeros_like(out).index_fill_(1, torch.tensor([3]), torch.nan)

        if (RANK, session.step) != (rank, step):
            return BACKWARD(session, stage, *batch)
        hook = session.model.embedding.register_forward_hook(poison)
        loss = BACKWARD(session, stage, *batch)
        hook.remove()
        return loss

    return backward


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    corpus = open_corpus(Path(task["corpus"]))
    # The fused kernels decide, as on a GPU.
    guard.decides_on_device = lambda rule, _device: isinstance(rule, torch.optim.Adam)
    dist.init_process_group("gloo")  # one for all runs
    notes: list[tuple[int, object]] = []
    for run in task["runs"]:

        def stop(progress, wanted=run["stop"]):
            if wanted == [RANK, progress.step]:
                os.kill(os.getpid(), signal.SIGTERM)

        Session._backward = poisoned(run["fault"])
        try:
            record = train(build(TrainConfig, run["config"]), corpus, on_progress=stop)
            notes.append((0, record.val_loss))
        except LlmtrainError as error:
            notes.append((error.exit_code, str(error)))
    (Path(task["out"]) / f"{RANK}.json").write_text(json.dumps(notes))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
    os._exit(
        0
    )  # as scripts/train.py: gloo's threads can abort an interpreter that takes itself apart
