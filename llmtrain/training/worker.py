"""One cell in a worker process: from its configuration to what a sweep shows of its record."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llmtrain.corpus.prepare import prepare
from llmtrain.corpus.shards import Corpus, open_corpus
from llmtrain.spec.build import build
from llmtrain.spec.errors import DeviceLostError, LlmtrainError
from llmtrain.spec.plan import run_id
from llmtrain.spec.record import RunRecord
from llmtrain.spec.redact import redact
from llmtrain.spec.settings import TrainConfig
from llmtrain.training.progress import Progress

Report = Callable[[dict[str, Any]], None]


@functools.cache
def opened(directory: Path) -> Corpus:
    """Return the corpus in `directory`; a worker opens it once for all its cells."""
    return open_corpus(directory)


def work(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    """Train the cell in payload["config"], or read its record where it is there already.

    payload["stack"] holds several instead, trained as one: the result then has their results, or
    why they failed, by run id under "cells". Raises RunLockedError where another process has the
    cell or has failed with it, and DeviceLostError where torch fails on a GPU. An empty report is a
    sign of life: one follows every step.
    Importable by name, so that a process on another machine can be told to do the same.
    """
    with _device_watched():
        return _train(payload, report)


@contextlib.contextmanager
def _device_watched() -> Iterator[None]:
    """Raise DeviceLostError for what torch raises on a GPU.

    After an illegal access, a failed assertion or a broken capture every later call fails as well:
    who catches this is to leave the process.
    """
    try:
        yield
    except RuntimeError as error:
        import torch  # noqa: PLC0415 - as below

        if not torch.cuda.is_initialized():
            raise
        first = (str(error).splitlines() or [""])[0]
        raise DeviceLostError(f"{type(error).__name__} on the GPU: {first}") from error


def _train(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    # The driver needs no torch.
    from llmtrain.training.memory import (  # noqa: PLC0415
        free_memory,
        train_group_in_memory,
        train_in_memory,
    )
    from llmtrain.training.runtime import hardware, pick_device  # noqa: PLC0415

    configs = [build(TrainConfig, raw) for raw in payload.get("stack") or [payload["config"]]]
    config = configs[0]
    device = pick_device(config.runtime)
    if device.type == "cuda":
        free_memory()  # the cell before may have left compiled blocks, which are reference cycles
    machine = hardware(device, config.runtime)

    def on_progress(name: str, progress: Progress) -> None:
        report(dataclasses.asdict(progress) | {"cell": name, "hardware": machine})

    on_step = functools.partial(report, {})
    corpus = opened(prepare(config.data))
    if "stack" in payload:
        ends = train_group_in_memory(configs, corpus, on_progress=on_progress, on_step=on_step)
        return {"cells": {name: _end(end) for name, end in ends.items()}}
    tell = functools.partial(on_progress, run_id(config))
    return _result(train_in_memory(config, corpus, on_progress=tell, on_step=on_step, retry=False))


def compile_cell(payload: dict[str, Any], report: Report) -> dict[str, Any]:
    """Compile what `work` will for the same payload, into torch's cache; leave nothing else."""
    from llmtrain.training.ahead import compile_for  # noqa: PLC0415 - as above
    from llmtrain.training.memory import free_memory  # noqa: PLC0415

    configs = [build(TrainConfig, raw) for raw in payload.get("stack") or [payload["config"]]]
    for _ in compile_for(configs, opened(prepare(configs[0].data))):
        report({})
    free_memory()
    return {}


def _result(record: RunRecord) -> dict[str, Any]:
    return {
        "val_loss": record.val_loss,
        "val_bpb": record.val_bpb,
        "n_params": record.params["no_input_embedding"],
        "budget": record.flops_budget,
    }


def _end(end: RunRecord | LlmtrainError) -> dict[str, Any]:
    if isinstance(end, RunRecord):
        return {"result": _result(end)}
    return {"error": redact(str(end)), "way": type(end).__name__, "exit_code": end.exit_code}
