"""What runs will compile, compiled before they start: torch keeps it for other processes."""

import dataclasses
from collections.abc import Iterator, Sequence

from llmtrain.corpus.shards import Corpus
from llmtrain.spec.settings import TrainConfig
from llmtrain.training.loop import planned
from llmtrain.training.runtime import pick_device
from llmtrain.training.session import Session
from llmtrain.training.stacked import Stack
from llmtrain.training.warm import warm_up


def compile_for(configs: Sequence[TrainConfig], corpus: Corpus) -> Iterator[None]:
    """Compile what a run, or several trained as one, will need; yield after each stage.

    No step is taken, and no file is written but torch's. A CUDA graph is the trainer's own: blocks
    are compiled alike for it.
    """
    device = pick_device(configs[0].runtime)
    sessions = []
    for config in configs:
        runtime = dataclasses.replace(config.runtime, cuda_graph="off")
        eager = dataclasses.replace(config, runtime=runtime)
        sessions.append(Session(eager, planned(eager, corpus), corpus, device))
    if len(sessions) > 1:
        yield from Stack(sessions).warm_up()
    else:
        yield from warm_up(sessions[0])
