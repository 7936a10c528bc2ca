"""Batch k of a plan as tensors: a pure function of the corpus, the seed and k."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmtrain.corpus.shards import BlockOrder, Corpus, validation_starts
from llmtrain.spec.errors import MismatchError
from llmtrain.spec.plan import PlanStage, RunPlan

RESIDENT_SHARE = 0.25  # of a GPU's memory that the tokens may take
AHEAD_TOKENS = 2**15  # that the host reads at once: fetching a small batch costs more than its copy


Starts = NDArray[np.int64]
Batch = tuple[Tensor, Tensor]

_KEPT: dict[torch.device, tuple[Any, Tensor]] = {}
"""By device: the last tokens that were brought there, for the next run of a warm worker."""


def resident(tokens: Any, device: torch.device) -> Tensor:
    """Return a token array on the device; the copy is kept until another array is asked for."""
    if device not in _KEPT or _KEPT[device][0] is not tokens:
        _KEPT.pop(device, None)  # its memory, before the next is taken
        # int32: not every CUDA kernel takes unsigned 16-bit indices.
        whole = torch.from_numpy(np.asarray(tokens[:]).astype(np.int32))
        _KEPT[device] = (tokens, whole.to(device))
    return _KEPT[device][1]


class TokenSource:
    """Rows of tokens at given offsets; on a GPU the tokens stay there when they fit."""

    def __init__(self, tokens: Any, device: torch.device) -> None:
        self.tokens = tokens
        self.device = device
        self.resident: Tensor | None = None
        if device.type == "cuda":
            memory = torch.cuda.get_device_properties(device).total_memory
            if 4 * len(tokens) <= RESIDENT_SHARE * memory:
                self.resident = resident(tokens, device)

    def rows(self, starts: Starts | Tensor, length: int) -> Batch:
        """Return inputs and targets, both int64 of shape (len(starts), length), on the device.

        `starts` may lie on the device already where the tokens do: then nothing is sent.
        """
        if self.resident is not None:
            if not isinstance(starts, Tensor):
                starts = _sent(torch.from_numpy(starts), self.device)
            within = torch.arange(length + 1, device=self.device)
            window = self.resident[starts[:, None] + within].long()
        else:
            offsets = np.asarray(starts)[:, None] + np.arange(length + 1)
            window = torch.from_numpy(np.asarray(self.tokens[offsets]).astype(np.int64))
            window = _sent(window, self.device)
        return window[:, :-1], window[:, 1:]


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a copy on the device that the host does not wait for: from memory that stays put."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Batches:
    """The training batches of a plan. There is no loader state: the step is the cursor."""

    def __init__(self, corpus: Corpus, plan: RunPlan, seed: int, device: torch.device) -> None:
        n_tokens = corpus.manifest.train.n_tokens
        self.plan = plan
        self.blocks = plan.batch_tokens // plan.block_len
        """Corpus blocks that every step reads."""
        self.source = TokenSource(corpus.train, device)
        self.order = BlockOrder(n_tokens=n_tokens, block_len=plan.block_len, seed=seed)
        self.ahead: tuple[range, PlanStage, Batch] | None = None
        """Steps that were read together, their stage, and their rows."""

    def at(self, step: int, stage: PlanStage | None = None) -> Batch:
        """Return (inputs, targets) of step `step`, both (rows, row_len) of `stage`, or its own."""
        stage = self.plan.shape_at(step) if stage is None else stage
        if self.source.device.type != "cpu":
            return self.cut(self.order.starts(step * self.blocks, self.blocks), stage)
        if self.ahead is None or step not in self.ahead[0] or stage != self.ahead[1]:
            n_steps = max(1, AHEAD_TOKENS // stage.step_tokens)
            rows = self.cut(self.order.starts(step * self.blocks, n_steps * self.blocks), stage)
            self.ahead = (range(step, step + n_steps), stage, rows)
        steps, _, (inputs, targets) = self.ahead
        first = (step - steps.start) * stage.rows
        return inputs[first : first + stage.rows], targets[first : first + stage.rows]

    def cut(self, starts: Starts | Tensor, stage: PlanStage) -> Batch:
        """Return (inputs, targets) of steps whose blocks lie at `starts`.

        Every step reads the same number of blocks, so the order of the text does not depend on
        the stages: reshape cuts a block into shorter rows, truncate keeps each block's beginning.
        """
        if stage.rows == self.blocks:  # full rows, a window over full rows, or truncated rows
            return self.source.rows(starts, stage.row_len)
        inputs, targets = self.source.rows(starts, self.plan.block_len)
        shape = (-1, stage.row_len)
        return inputs.reshape(shape), targets.reshape(shape)


def validation_rows(corpus: Corpus, *, n_tokens: int, seq_len: int) -> Batch:
    """Return the rows that every evaluation uses: spread over the split, the same for every run."""
    n_rows = n_tokens // seq_len
    available = corpus.manifest.val.n_tokens
    if available < seq_len + 1:
        raise MismatchError(
            f"the validation split has {available} tokens, fewer than one row of {seq_len}; "
            "raise data.val_fraction or take more text"
        )
    starts = validation_starts(n_tokens=available, block_len=seq_len, n_blocks=n_rows)
    return TokenSource(corpus.val, torch.device("cpu")).rows(starts, seq_len)
