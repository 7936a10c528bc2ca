"""Everything that one run holds: model, optimizer, data, clocks; stepped, saved, restored."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from llmtrain.corpus.shards import Corpus
from llmtrain.spec.errors import DivergedError
from llmtrain.spec.plan import PlanStage, RunPlan
from llmtrain.spec.schedule import lr_factor_at
from llmtrain.spec.settings import TrainConfig
from llmtrain.training.batches import Batches
from llmtrain.training.evaluate import Evaluation, Evaluator
from llmtrain.training.guard import REMEDY, Guard, nonfinite_weight
from llmtrain.training.model import Transformer, cross_entropy
from llmtrain.training.optim import build_optimizer, clip_gradients, set_lr
from llmtrain.training.parallel import ALONE, Team
from llmtrain.training.runtime import autocast, step_seed

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
        self.seconds = {"setup": 0.0, "compile": 0.0, "train": 0.0, "evaluate": 0.0, "save": 0.0}
        self.tail_sum, self.tail_steps = 0.0, 0
        self.recent: list[Tensor] = []  # losses since the last row; read together, one sync
        self.grad_norm = torch.zeros(())
        self.model = Transformer(
            config.model,
            vocab_size=corpus.manifest.vocab_size,
            seq_len=config.seq_len.seq_len,
            activation_checkpointing=config.runtime.activation_checkpointing,
        )
        self.model.init_weights(config.seed)
        if config.runtime.compile:
            for block in self.model.blocks:
                block.compile(dynamic=False)
        self.forward = team.place(self.model, device)
        self.optimizer = build_optimizer(self.model, config.optimizer, plan.hyper, fused=True)
        self.guard = Guard(config.guard, plan, self.optimizer, device)
        self.batches = Batches(corpus, plan, config.seed, device)
        self.evaluator = Evaluator(
            corpus,
            n_tokens=config.evaluation.n_tokens,
            seq_len=config.seq_len.seq_len,
            device=device,
            team=team,
        )
        self.warmed: set[PlanStage] = set()
        self.cold_steps = 0  # steps whose time went to compilation
        self.last_lr = 0.0

    def autocast(self) -> AbstractContextManager[None]:
        """Return the precision context of a forward pass."""
        return autocast(self.device, self.config.runtime)

    def lr(self) -> float:
        """Return the learning rate of the next step: the schedule at the middle of its tokens."""
        stage = self.plan.shape_at(self.step)
        return self.plan.hyper.peak_lr * lr_factor_at(
            self.plan.done_at(self.step)[0] + stage.step_tokens / 2,
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
        begin = time.perf_counter()
        stage = self.plan.shape_at(self.step)
        self.last_lr = self.lr()
        set_lr(self.optimizer, self.last_lr)
        if self.config.model.dropout > 0:
            torch.manual_seed(step_seed(self.config.seed, self.step, self.team.rank))
        loss = self._backward(stage)
        norm = clip_gradients(self.model, self.config.optimizer.grad_clip)
        self.grad_norm = self.team.whole(norm)
        loss = self.guard.step(loss, self.grad_norm)
        self.optimizer.zero_grad(set_to_none=True)
        self.recent.append(loss)
        self.step += 1
        elapsed = time.perf_counter() - begin
        cold = self.config.runtime.compile and stage not in self.warmed
        self.cold_steps += cold
        self.warmed.add(stage)
        self.seconds["compile" if cold else "train"] += elapsed

    def pass_over(self) -> None:
        """Leave the next step out: its batch is not read and nothing is updated."""
        self.last_lr = self.lr()
        self.grad_norm = torch.tensor(torch.nan)
        self.recent.append(torch.tensor(torch.nan, device=self.device))
        self.step += 1

    def _backward(self, stage: PlanStage) -> Tensor:
        """Accumulate the gradient of the mean loss over the batch; return that loss, detached."""
        inputs, targets = self.batches.at(self.step)
        micro_tokens = self.config.runtime.micro_batch_tokens or stage.step_tokens
        rows = max(1, micro_tokens // stage.row_len)
        total = torch.zeros((), device=self.device)
        for part in self.team.passes(len(inputs), rows):  # the last one may be smaller
            with self.team.during(part):
                with self.autocast():
                    logits = self.forward(inputs[part.rows], window=stage.window)
                nll, loss = cross_entropy(
                    logits, targets[part.rows], z_loss=self.config.optimizer.z_loss
                )
                (loss * part.weight).backward()
            total = total + nll * part.share
        return self.team.sum(total)

    def drain_losses(self) -> float:
        """Return the mean training loss since the last call: the one wait for the device.

        Steps that the guard held back are left out; NaN where there is no other. Raises what the
        guard says of them.
        """
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

    def evaluate(self, between: Callable[[], None] = lambda: None) -> Evaluation:
        """Return the validation loss at full length; training's random numbers are not touched.

        `between` is called before every pass. Raises what the guard says of a loss that is not
        finite.
        """
        with self.timed("evaluate"):
            self.model.eval()
            result = self.evaluator(self.model, self.autocast, between)
            self.model.train()
        if not math.isfinite(result.loss):
            reason = f"after step {self.step}: validation loss {result.loss}"
            raise self.guard.verdict(self.step - 1, reason)
        return result

    def timed(self, part: str) -> "Stopwatch":
        """Add the time of a `with` block to a part of the run's seconds."""
        return Stopwatch(self.seconds, part)

    def state(self) -> dict[str, Any]:
        """Return everything that resume needs, the losses since the last row included.

        Raises what the guard says where something in it is no number: that is never saved.
        """
        self.check_step(wait=True)
        self.check_weights()
        return {
            "model": self.team.whole_state(self.model.state_dict()),
            "optimizer": self.team.whole_state(self.optimizer.state_dict()),
            "step": self.step,
            "first_step": self.first_step,
            "seconds": self.seconds,
            "tail": [self.tail_sum, self.tail_steps],
            "recent": list(self.recent),
            "guard": self.guard.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        team, model, optimizer = self.team, self.model, self.optimizer
        model.load_state_dict(team.parts_of_model(model, state["model"]))
        optimizer.load_state_dict(team.parts_of_optimizer(optimizer, state["optimizer"]))
        self.step = state["step"]
        self.first_step = state.get("first_step", 0)
        self.seconds.update(state["seconds"])
        self.tail_sum, self.tail_steps = state["tail"]
        self.recent = [loss.to(self.device) for loss in state["recent"]]
        if "guard" in state:  # a younger part of the state
            self.guard.restore(state["guard"])

    def branch(self, state: dict[str, Any]) -> None:
        """Start from the `state` of a trunk; the seconds are counted from here."""
        seconds = dict(self.seconds)
        self.restore(state)
        self.first_step = self.step
        self.seconds.update(seconds)


class Stopwatch:
    """Adds the wall time of a `with` block to one entry of a dictionary."""

    def __init__(self, seconds: dict[str, float], part: str) -> None:
        self.seconds, self.part = seconds, part

    def __enter__(self) -> None:
        self.begin = time.perf_counter()

    def __exit__(self, *_error: object) -> None:
        self.seconds[self.part] += time.perf_counter() - self.begin
