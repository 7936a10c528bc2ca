"""Runs of one shape stepped as one: seeds, rates and data orders as one more axis of every weight.

A small model leaves most of a GPU idle, and a step of R of them costs little more than a step of
one. Weights get a leading axis of R replicas, linear layers become batched products, and the batch
holds the replicas' rows one after another. The loss is the sum of their means, so no gradient
crosses from one to another. Clipping and updating stay each run's own, on its part of the memory:
its state, checkpoint and record are those of a run alone.
"""

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmtrain.spec.check import check
from llmtrain.spec.plan import PlanStage
from llmtrain.spec.stacking import stack_key
from llmtrain.training.batches import Batch
from llmtrain.training.clocks import Stopwatch
from llmtrain.training.model import Transformer
from llmtrain.training.optim import set_lr
from llmtrain.training.runtime import compile_blocks, wait_for
from llmtrain.training.session import Session
from llmtrain.training.warm import cold_stages, warm_up_evaluation
from llmtrain.training.whole import WholeStep


def stack_models(models: Sequence[Transformer]) -> Transformer:
    """Return a model of all of them, whose parameters are theirs: shape (R, ...), shared memory."""
    stacked = copy.deepcopy(models[0])
    for name, parameter in list(stacked.named_parameters()):
        parts = [model.get_parameter(name) for model in models]
        whole = nn.Parameter(torch.stack([part.detach() for part in parts]))
        owner, _, attribute = name.rpartition(".")
        setattr(stacked.get_submodule(owner), attribute, whole)
        for part, memory in zip(parts, whole.detach(), strict=True):
            part.data = memory
        assert parameter.shape == whole.shape[1:]
    return stacked


def stacked_cross_entropy(
    logits_BTV: Tensor, targets_BT: Tensor, *, n_replicas: int, z_loss: float
) -> tuple[Tensor, Tensor]:
    """Return every replica's mean negative log-likelihood, (R,), and the sum to differentiate."""
    logits = logits_BTV.flatten(0, -2).float()
    nll = functional.cross_entropy(logits, targets_BT.flatten(), reduction="none")
    nll_R = nll.view(n_replicas, -1).mean(dim=1)
    if z_loss == 0.0:
        return nll_R.detach(), nll_R.sum()
    squares_R = logits.logsumexp(dim=-1).square().view(n_replicas, -1).mean(dim=1)
    return nll_R.detach(), (nll_R + z_loss * squares_R).sum()


class Stack:
    """Sessions that take their steps together; each keeps its own clock, losses and seconds."""

    def __init__(self, sessions: Sequence[Session]) -> None:
        """Join sessions at the same step. Raises ConfigError where they cannot be joined."""
        first = sessions[0]
        key = stack_key(first.config)
        same = all(
            (stack_key(one.config), one.plan.stages, one.step)
            == (key, first.plan.stages, first.step)
            for one in sessions
        )
        check(
            key is not None and same,
            f"{len(sessions)} runs that differ in more than seed and lr_multiplier, or stand at "
            "other steps, cannot be stacked; train them one by one",
        )
        self.sessions, self.plan, self.config = list(sessions), first.plan, first.config
        for session in sessions:
            session.stacked = max(session.stacked, len(sessions))
        self.model = stack_models([session.model for session in sessions])
        if self.config.runtime.compile:
            compile_blocks(self.model.blocks)
        self.pairs = [
            (whole, [session.model.get_parameter(name) for session in sessions])
            for name, whole in self.model.named_parameters()
        ]
        wholes = [session.whole for session in sessions if session.whole is not None]
        self.whole = None
        if wholes:
            self.whole = WholeStep([tables for w in wholes for tables in w.tables], self._run)

    @property
    def step(self) -> int:
        """Steps that every session has done."""
        return self.sessions[0].step

    def warm_up(self) -> Iterator[None]:
        """Compile and capture what the rest of the run needs, as warm.warm_up does."""
        first = self.sessions[0]
        for stage in cold_stages(first):
            with self._shared("compile"):
                if self.whole is not None:
                    self.whole.capture(self.step, stage)
                else:
                    self._backward(stage, self._batches(stage))
                    self.model.zero_grad(set_to_none=True)
            yield
        yield from warm_up_evaluation(first)

    def train_step(self) -> None:
        """Do one step of every session."""
        with self._shared("train"):
            step, stage = self.step, self.plan.shape_at(self.step)
            if self.whole is not None:
                tables = self.whole(step, stage)
                done = [(each.losses[step], each.norm) for each in tables]
            else:
                for session in self.sessions:
                    set_lr(session.optimizer, session.lr_at(step))
                done = self._update(stage, self._batches(stage))
            for session, (loss, norm) in zip(self.sessions, done, strict=True):
                session.take(loss, norm)

    def settle(self) -> None:
        """Wait for the steps under way; the time is every session's."""
        with self._shared("train"):
            wait_for(self.sessions[0].device)

    def _run(self, stage: PlanStage) -> None:
        """Do a step by the device's counters alone (whole.py)."""
        assert self.whole is not None
        done = self._update(stage, [tables.batch(stage) for tables in self.whole.tables])
        for tables, (loss, norm) in zip(self.whole.tables, done, strict=True):
            tables.note(loss, norm)

    def _batches(self, stage: PlanStage) -> list[Batch]:
        return [session.batches.at(session.step, stage) for session in self.sessions]

    def _update(self, stage: PlanStage, batches: Sequence[Batch]) -> list[tuple[Tensor, Tensor]]:
        """Take a step on each session's batch; return each one's loss and gradient norm."""
        losses_R = self._backward(stage, batches)
        for whole, parts in self.pairs:
            assert whole.grad is not None
            for part, gradient in zip(parts, whole.grad, strict=True):
                part.grad = gradient
            whole.grad = None
        pairs = zip(self.sessions, losses_R.unbind(), strict=True)
        return [session.apply_gradients(loss) for session, loss in pairs]

    def _backward(self, stage: PlanStage, batches: Sequence[Batch]) -> Tensor:
        """Leave every replica's gradient of its own mean loss; return these losses, (R,)."""
        first, n = self.sessions[0], len(self.sessions)
        inputs, targets = (torch.stack(rows) for rows in zip(*batches, strict=True))
        total = torch.zeros(n, device=first.device)
        for part in first.passes(stage):
            with first.autocast():
                logits = self.model(inputs[:, part.rows].flatten(0, 1), window=stage.window)
            nll, loss = stacked_cross_entropy(
                logits,
                targets[:, part.rows].flatten(0, 1),
                n_replicas=n,
                z_loss=self.config.optimizer.z_loss,
            )
            (loss * part.weight).backward()
            total = total + nll * part.share
        return total

    def _shared(self, part: str) -> Stopwatch:
        return Stopwatch(part, [session.seconds for session in self.sessions])
