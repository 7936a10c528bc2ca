"""The validation loss: a fixed set of rows at full length, in nats per token and bits per byte."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from llmtrain.corpus.shards import Corpus
from llmtrain.spec.graphs import eval_rows
from llmtrain.training.batches import validation_rows
from llmtrain.training.parallel import ALONE, Team


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The loss on the validation rows."""

    loss: float
    """Mean over tokens, nats per token."""
    bpb: float
    """Bits per byte of the text that the targets stand for."""
    n_tokens: int
    se: float
    """Standard error of the loss over rows, nats per token."""


class Evaluator:
    """Evaluates any model of a run on the same rows."""

    def __init__(
        self,
        corpus: Corpus,
        *,
        n_tokens: int,
        seq_len: int,
        device: torch.device,
        team: Team = ALONE,
        equal_passes: bool = False,
    ) -> None:
        """`equal_passes` fills the last pass up, so that all have one shape and compile once."""
        inputs, targets = validation_rows(corpus, n_tokens=n_tokens, seq_len=seq_len)
        self.n_bytes = int(np.asarray(corpus.token_bytes)[targets.numpy()].sum())
        self.inputs, self.targets = inputs.to(device), targets.to(device)
        self.rows_per_pass = min(len(self.inputs), eval_rows(seq_len))
        self.equal_passes = equal_passes
        self.device, self.team = device, team

    @torch.no_grad()
    def __call__(
        self,
        forward: Callable[[Tensor], Tensor],
        autocast: Callable[[], AbstractContextManager[None]],
        between: Callable[[], None] = lambda: None,
    ) -> Evaluation:
        """Return the loss of `forward`, which maps (B, T) tokens to (B, T, V) logits.

        `between` is called before every pass; what it raises ends the evaluation.
        Collective: every process fills in its own rows, and the sum with the others' zeros is all.
        """
        n_rows = len(self.inputs)
        losses = torch.zeros(n_rows, device=self.device)
        for part in self.team.passes(n_rows, self.rows_per_pass):
            between()
            inputs, targets = self.inputs[part.rows], self.targets[part.rows]
            with autocast():
                logits = forward(self._filled(inputs))[: len(inputs)]
            nll = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
            if part.share > 0:
                losses[part.rows] = nll.view(targets.shape).mean(dim=1)
        by_row = self.team.sum(losses).double().cpu()
        loss = float(by_row.mean())
        n_tokens = self.targets.numel()
        return Evaluation(
            loss=loss,
            bpb=loss * n_tokens / math.log(2) / self.n_bytes,
            n_tokens=n_tokens,
            se=float(by_row.std()) / math.sqrt(n_rows),
        )

    @torch.no_grad()
    def rehearse(
        self,
        forward: Callable[[Tensor], Tensor],
        autocast: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Do one pass and forget it: what is compiled for it is there when it counts."""
        with autocast():
            forward(self._filled(self.inputs[: self.rows_per_pass]))

    def _filled(self, inputs: Tensor) -> Tensor:
        missing = self.rows_per_pass - len(inputs)
        if not self.equal_passes or missing == 0:
            return inputs
        return torch.cat([inputs, inputs[:1].expand(missing, -1)])
