"""A run that does not fit the device is trained again in smaller passes: same batch, same loss."""

import dataclasses
import functools
import gc
from collections.abc import Hashable, Sequence

import torch

from llmtrain.corpus.shards import Corpus
from llmtrain.spec.errors import InterruptedRunError, LlmtrainError, OutOfMemoryError
from llmtrain.spec.plan import plan_run, run_id
from llmtrain.spec.record import RunRecord
from llmtrain.spec.settings import TrainConfig
from llmtrain.training.group import Ends, GroupHook, train_group
from llmtrain.training.loop import train
from llmtrain.training.progress import ProgressHook, StepHook
from llmtrain.training.runtime import is_out_of_memory, warn

_FITTING: dict[Hashable, int] = {}
"""Tokens of a pass that fitted after more did not, by what else a run's memory depends on."""


def train_in_memory(
    config: TrainConfig,
    corpus: Corpus,
    *,
    on_progress: ProgressHook | None = None,
    on_step: StepHook = lambda: None,
    retry: bool = True,
) -> RunRecord:
    """Train one run as `train` does; where memory runs out, halve the rows of a pass and go on.

    What fitted is where this process's next run of the same shape begins.
    runtime.micro_batch_tokens is no part of a run's identity: the loss is the same up to float
    error. Raises OutOfMemoryError where one row per pass is still too much. Several devices would
    have to agree on the passes: there the first failure is the last.
    """
    need = (
        config.model,
        config.seq_len.seq_len,
        config.data.vocab_size,
        config.optimizer.name,
        dataclasses.replace(config.runtime, micro_batch_tokens=None),
    )
    config = _as_before(config, _FITTING.get(need))
    while True:
        try:
            return train(config, corpus, on_progress=on_progress, on_step=on_step, retry=retry)
        except (RuntimeError, MemoryError) as error:
            if config.runtime.parallel != "none" or not is_out_of_memory(error):
                raise
            config = smaller_passes(config, corpus.manifest.vocab_size)
        assert config.runtime.micro_batch_tokens is not None
        _FITTING[need] = config.runtime.micro_batch_tokens
        free_memory()  # here the error and its frames, which held the tensors, are gone
        warn(f"out of memory; again with {config.runtime.micro_batch_tokens} tokens a pass")


def train_group_in_memory(
    configs: Sequence[TrainConfig],
    corpus: Corpus,
    *,
    on_progress: GroupHook,
    on_step: StepHook,
) -> Ends:
    """Train runs as one as `train_group` does; where memory runs out, one after another."""
    ends: Ends = {}
    try:
        return train_group(configs, corpus, on_progress=on_progress, on_step=on_step, ends=ends)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    free_memory()
    warn(f"out of memory with {len(configs)} runs as one; again, one after another")
    for config in configs:
        name = run_id(config)
        if name in ends:
            continue  # it ended before the memory did
        tell = functools.partial(on_progress, name)
        try:
            ends[name] = train_in_memory(
                config, corpus, on_progress=tell, on_step=on_step, retry=False
            )
        except InterruptedRunError:
            raise
        except LlmtrainError as error:
            ends[name] = error
    return ends


def _as_before(config: TrainConfig, fitting: int | None) -> TrainConfig:
    """Return the run in passes of at most `fitting` tokens, and say so where that changes them."""
    wanted = config.runtime.micro_batch_tokens
    if fitting is None or (wanted is not None and wanted <= fitting):
        return config
    warn(f"at most {fitting} tokens a pass, because more did not fit in a run of this shape")
    runtime = dataclasses.replace(config.runtime, micro_batch_tokens=fitting)
    return dataclasses.replace(config, runtime=runtime)


def free_memory() -> None:
    """Give back what nothing refers to, on a GPU to other processes too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def smaller_passes(config: TrainConfig, vocab_size: int) -> TrainConfig:
    """Return the run with half the rows in a pass. Raises OutOfMemoryError where one is left."""
    seq_len = config.seq_len.seq_len
    batch = plan_run(config, vocab_size=vocab_size, unique_tokens=None).batch_tokens
    rows = min(config.runtime.micro_batch_tokens or batch, batch) // seq_len
    if rows <= 1:
        raise OutOfMemoryError(
            f"out of memory with one row of {seq_len} tokens a pass; take "
            "runtime.activation_checkpointing=true, a smaller model or a bigger device"
        )
    runtime = dataclasses.replace(config.runtime, micro_batch_tokens=rows // 2 * seq_len)
    return dataclasses.replace(config, runtime=runtime)
