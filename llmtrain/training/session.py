"""Everything that one run holds: model, optimizer, data, clocks; stepped, saved, restored."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from llmtrain.corpus.shards import Corpus
from llmtrain.spec.errors import DivergedError
from llmtrain.spec.plan import PlanStage, RunPlan
from llmtrain.spec.schedule import lr_factor_at
from llmtrain.spec.settings import TrainConfig
from llmtrain.training.batches import Batches
from llmtrain.training.clocks import Stopwatch
from llmtrain.training.evaluate import Evaluation, Evaluator
from llmtrain.training.guard import REMEDY, Guard, nonfinite_weight
from llmtrain.training.loss_head import LossHead
from llmtrain.training.model import Transformer
from llmtrain.training.optim import (
    build_optimizer,
    clip_gradients,
    drop_gradients,
    load_state,
    portable_state,
    set_lr,
)
from llmtrain.training.parallel import ALONE, Pass, Team
from llmtrain.training.runtime import autocast, compile_blocks, step_seed, wait_for
from llmtrain.training.whole import Tables, WholeStep, wants_graph

TAIL = 0.95  # the reported training loss is the mean over the steps after this share of the run


class Session:
    """The state of a run and the ways to move it; the step is the only cursor.

    With a team of several devices every method that moves, saves or measures is collective.
    """

    def __init__(
        self,
        config: TrainConfig,
        plan: RunPlan,
        corpus: Corpus,
        device: torch.device,
        team: Team = ALONE,
    ) -> None:
        self.config, self.plan, self.device, self.team = config, plan, device, team
        self.step = 0
        self.first_step = 0  # where a branch left its trunk
        parts = ("setup", "compile", "train", "evaluate", "save", "undone")
        self.seconds = dict.fromkeys(parts, 0.0)
        self.tail_sum, self.tail_steps = 0.0, 0
        self.stacked = 1  # runs that took steps together with this one, itself included, at most
        self.recent: list[Tensor] = []  # losses since the last row; read together, one sync
        self.grad_norm = torch.zeros(())
        self.model = Transformer(
            config.model,
            vocab_size=corpus.manifest.vocab_size,
            seq_len=config.seq_len.seq_len,
            activation_checkpointing=config.runtime.activation_checkpointing,
            attention=config.runtime.attention,
        )
        self.model.init_weights(config.seed)
        if config.runtime.compile:
            compile_blocks(self.model.blocks)
        self.losses = LossHead(config, team.place(self.model, device), device)
        self.parameters = list(self.model.parameters())
        self.batches = Batches(corpus, plan, config.seed, device)
        graphed = wants_graph(config, self.batches.source)
        self.optimizer = build_optimizer(
            self.model, config.optimizer, plan.hyper, fused=True, capturable=graphed
        )
        self.guard = Guard(config.guard, plan, self.optimizer, device)
        self.whole = self.whole_step() if graphed else None
        self.evaluator = Evaluator(
            corpus,
            n_tokens=config.evaluation.n_tokens,
            seq_len=config.seq_len.seq_len,
            device=device,
            team=team,
            equal_passes=config.runtime.compile,
        )
        self.last_lr = 0.0

    def autocast(self) -> AbstractContextManager[None]:
        """Return the precision context of a forward pass."""
        return autocast(self.device, self.config.runtime)

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step: the schedule at the middle of its tokens."""
        stage = self.plan.shape_at(step)
        return self.plan.hyper.peak_lr * lr_factor_at(
            self.plan.done_at(step)[0] + stage.step_tokens / 2,
            self.config.schedule,
            warmup_tokens=self.plan.warmup_tokens,
            n_tokens=self.plan.n_tokens,
        )

    def clock(self) -> dict[str, float | int]:
        """Return step, tokens and FLOPs (under the budget's convention) done so far."""
        tokens, flops = self.plan.done_at(self.step)
        return {"step": self.step, "tokens": tokens, "flops": flops}

    def train_step(self) -> None:
        """Do one optimizer step on the next batch, in as many passes as the memory wants."""
        with self.timed("train"):
            stage = self.plan.shape_at(self.step)
            if self.whole is not None:
                (tables,) = self.whole(self.step, stage)
                loss, norm = tables.losses[self.step], tables.norm
            else:
                set_lr(self.optimizer, self.lr_at(self.step))
                if self.config.model.dropout > 0:
                    torch.manual_seed(step_seed(self.config.seed, self.step, self.team.rank))
                loss, norm = self.update(stage, *self.batches.at(self.step, stage))
            self.take(loss, norm)

    def update(self, stage: PlanStage, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step on a batch; return its loss and gradient norm, both still on the device."""
        return self.apply_gradients(self._backward(stage, inputs, targets))

    def apply_gradients(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Clip, update the weights, drop the gradients; return the loss and the norm before.

        Both are scalars; the guard holds an update back that is no number: its loss is NaN then.
        """
        norm = self.team.whole(clip_gradients(self.parameters, self.config.optimizer.grad_clip))
        loss = self.guard.step(loss, norm)
        drop_gradients(self.parameters)
        return loss, norm

    def pass_over(self) -> None:
        """Leave the next step out: its batch is not read and nothing is updated."""
        self.take(*torch.full((2,), torch.nan, device=self.device))

    def whole_step(self) -> WholeStep:
        """Return the step as a function of counters on the device, ready to be captured."""
        rates = map(self.lr_at, range(self.plan.n_steps))
        tables = Tables(self.plan, list(rates), self.batches, self.optimizer, self.guard)
        return WholeStep([tables], self._step_by_counters)

    def _step_by_counters(self, stage: PlanStage) -> None:
        assert self.whole is not None
        (tables,) = self.whole.tables
        tables.note(*self.update(stage, *tables.batch(stage)))

    def rehearse(self, stage: PlanStage) -> None:
        """Run a stage's passes forward and backward, and forget the gradients."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            self._backward(stage, *self.batches.at(self.step, stage))
        drop_gradients(self.parameters)
        wait_for(self.device)

    def _backward(self, stage: PlanStage, inputs: Tensor, targets: Tensor) -> Tensor:
        """Accumulate the gradient of the mean loss over the batch; return that loss, detached."""
        total = torch.zeros((), device=self.device)
        for part in self.passes(stage):
            with self.team.during(part):
                nll, loss = self.losses(inputs[part.rows], targets[part.rows], stage.window)
                (loss * part.weight).backward()
            total = total + nll * part.share
        return self.team.sum(total)

    def passes(self, stage: PlanStage) -> list[Pass]:
        """Return the rows that go through the model at once; the last pass may be smaller."""
        micro_tokens = self.config.runtime.micro_batch_tokens or stage.step_tokens
        return self.team.passes(stage.rows, max(1, micro_tokens // stage.row_len))

    def take(self, loss: Tensor, norm: Tensor) -> None:
        """Note a step that was done, here or by a stack (stacked.py)."""
        self.last_lr, self.grad_norm = self.lr_at(self.step), norm
        self.recent.append(loss)
        self.step += 1

    def drain_losses(self) -> float:
        """Return the mean training loss since the last call: the one wait for the device.

        Steps that the guard held back are left out; NaN where there is no other. Raises what the
        guard says of them.
        """
        self.settle()  # before anything is read: whatever reads first would wait off the clock
        self.check_step(wait=True)
        losses = torch.stack(self.recent).double().cpu()
        first = self.step - len(self.recent)
        self.guard.read(first, losses.tolist(), last=self.step == self.plan.n_steps)
        tail = losses[max(0, int(TAIL * self.plan.n_steps) - first) :]
        tail = tail[tail.isfinite()]
        self.tail_sum += float(tail.sum())
        self.tail_steps += len(tail)
        if self.step == self.plan.n_steps and self.tail_steps == 0:
            raise DivergedError(f"no update near the last step, {self.step}, was finite; {REMEDY}")
        self.recent.clear()
        return float(losses[losses.isfinite()].mean())

    def check_step(self, *, wait: bool = False) -> None:
        """Raise what the guard says where a step was held back; `wait` for the device to know."""
        if not self.guard.must_act(wait=wait):
            return
        held = torch.stack(self.recent).isnan()
        step = self.step - len(self.recent) + int(held.int().argmax())
        weight = nonfinite_weight(self.model)
        also = "" if weight is None else f"; {weight} is not finite either"
        reason = f"step {step + 1}: {self.guard.seen}; its update was held back{also}"
        raise self.guard.verdict(step, reason)

    def check_weights(self) -> None:
        """Raise what the guard says where a weight is no number; collective."""
        weight = nonfinite_weight(self.model)
        (found,) = self.team.highest(weight is not None)
        if found:
            reason = f"after step {self.step}: {weight or 'a weight elsewhere'} is not finite"
            raise self.guard.verdict(self.step - 1, reason)

    def train_loss(self) -> float:
        """Return the mean loss over the last twentieth of the steps."""
        return self.tail_sum / self.tail_steps

    def settle(self) -> None:
        """Wait for the steps under way; the time is training's."""
        with self.timed("train"):
            wait_for(self.device)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Add the time of a `with` block to the saving, and no step's that is under way."""
        self.settle()
        with self.timed("save"):
            yield

    def evaluate(self, between: Callable[[], None] = lambda: None) -> Evaluation:
        """Return the validation loss at full length; training's random numbers are not touched.

        `between` is called before every pass. Raises what the guard says of a loss that is not
        finite.
        """
        self.settle()
        with self.timed("evaluate"), self.evaluating():
            result = self.evaluator(self.model, self.autocast, between)
        if not math.isfinite(result.loss):
            reason = f"after step {self.step}: validation loss {result.loss}"
            raise self.guard.verdict(self.step - 1, reason)
        return result

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put the model into evaluation during a `with` block."""
        self.model.eval()
        yield
        self.model.train()

    def timed(self, part: str) -> Stopwatch:
        """Add the time of a `with` block to a part of the run's seconds."""
        return Stopwatch(part, [self.seconds])

    def state(self) -> dict[str, Any]:
        """Return everything that resume needs, the losses since the last row included.

        Raises what the guard says where something in it is no number: that is never saved.
        """
        self.check_step(wait=True)
        self.check_weights()
        return {
            "model": self.team.whole_state(self.model.state_dict()),
            "optimizer": self.team.whole_state(portable_state(self.optimizer)),
            "step": self.step,
            "first_step": self.first_step,
            "stacked": self.stacked,
            "seconds": self.seconds,
            "tail": [self.tail_sum, self.tail_steps],
            "recent": list(self.recent),
            "guard": self.guard.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        team, model, optimizer = self.team, self.model, self.optimizer
        model.load_state_dict(team.parts_of_model(model, state["model"]))
        load_state(optimizer, team.parts_of_optimizer(optimizer, state["optimizer"]))
        if self.whole is not None:
            self.whole.forget()  # the moments lie elsewhere now
        self.step = state["step"]
        self.first_step = state["first_step"]
        self.stacked = state["stacked"]
        self.seconds.update(state["seconds"])
        self.tail_sum, self.tail_steps = state["tail"]
        self.recent = [loss.to(self.device) for loss in state["recent"]]
        self.guard.restore(state["guard"])

    def branch(self, state: dict[str, Any]) -> None:
        """Start from the `state` of a trunk; the seconds are counted from here."""
        seconds = dict(self.seconds)
        self.restore(state)
        self.first_step = self.step
        self.seconds.update(seconds)
