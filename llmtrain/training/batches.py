"""Batch k of a plan as tensors: a pure function of the corpus, the seed and k."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmtrain.corpus.shards import BlockOrder, Corpus, validation_starts
from llmtrain.spec.errors import MismatchError
from llmtrain.spec.plan import RunPlan

RESIDENT_SHARE = 0.25  # of a GPU's memory that the tokens may take


class TokenSource:
    """Rows of tokens at given offsets; on a GPU the tokens stay there when they fit."""

    def __init__(self, tokens: Any, device: torch.device) -> None:
        self.tokens = tokens
        self.device = device
        self.resident: Tensor | None = None
        if device.type == "cuda":
            memory = torch.cuda.get_device_properties(device).total_memory
            if 4 * len(tokens) <= RESIDENT_SHARE * memory:
                # int32: not every CUDA kernel takes unsigned 16-bit indices.
                whole = np.asarray(tokens[:]).astype(np.int32)
                self.resident = torch.from_numpy(whole).to(device)

    def rows(
        self, starts: np.ndarray[Any, np.dtype[np.int64]], length: int
    ) -> tuple[Tensor, Tensor]:
        """Return inputs and targets, both int64 of shape (len(starts), length), on the device."""
        offsets = starts[:, None] + np.arange(length + 1)
        if self.resident is not None:
            window = self.resident[torch.from_numpy(offsets).to(self.device, non_blocking=True)]
            window = window.long()
        else:
            window = torch.from_numpy(np.asarray(self.tokens[offsets]).astype(np.int64))
            window = window.to(self.device, non_blocking=True)
        return window[:, :-1], window[:, 1:]


class Batches:
    """The training batches of a plan. There is no loader state: the step is the cursor."""

    def __init__(self, corpus: Corpus, plan: RunPlan, seed: int, device: torch.device) -> None:
        n_tokens = corpus.manifest.train.n_tokens
        self.plan = plan
        self.source = TokenSource(corpus.train, device)
        self.order = BlockOrder(n_tokens=n_tokens, block_len=plan.block_len, seed=seed)

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Return (inputs, targets) of step `step`, both of shape (rows, row_len) of its stage.

        Every step reads the same number of blocks, so the order of the text does not depend on
        the stages: reshape cuts a block into shorter rows, truncate keeps each block's beginning.
        """
        stage = self.plan.shape_at(step)
        blocks = self.plan.batch_tokens // self.plan.block_len
        starts = self.order.starts(step * blocks, blocks)
        if stage.rows == blocks:  # full rows, a window over full rows, or truncated rows
            return self.source.rows(starts, stage.row_len)
        inputs, targets = self.source.rows(starts, self.plan.block_len)
        shape = (stage.rows, stage.row_len)
        return inputs.reshape(shape), targets.reshape(shape)


def validation_rows(corpus: Corpus, *, n_tokens: int, seq_len: int) -> tuple[Tensor, Tensor]:
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
