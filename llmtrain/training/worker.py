"""One cell in a worker process: from its configuration to what a sweep shows of its record."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmtrain.corpus.prepare import prepare
from llmtrain.corpus.shards import Corpus, open_corpus
from llmtrain.spec.build import build
from llmtrain.spec.settings import TrainConfig
from llmtrain.training.progress import Progress


@functools.cache
def opened(directory: Path) -> Corpus:
    """Return the corpus in `directory`; a worker opens it once for all its cells."""
    return open_corpus(directory)


def work(payload: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Train the cell in payload["config"], or read its record where it is there already.

    An empty report is a sign of life: one follows every step.
    Importable by name, so that a process on another machine can be told to do the same.
    """
    from llmtrain.training.memory import train_in_memory  # noqa: PLC0415 - the driver needs no torch
    from llmtrain.training.runtime import hardware, pick_device  # noqa: PLC0415

    config = build(TrainConfig, payload["config"])
    machine = hardware(pick_device(config.runtime), config.runtime)

    def on_progress(progress: Progress) -> None:
        report(dataclasses.asdict(progress) | {"hardware": machine})

    corpus = opened(prepare(config.data))
    record = train_in_memory(
        config, corpus, on_progress=on_progress, on_step=functools.partial(report, {})
    )
    return {
        "val_loss": record.val_loss,
        "val_bpb": record.val_bpb,
        "n_params": record.params["no_input_embedding"],
        "budget": record.flops_budget,
    }
