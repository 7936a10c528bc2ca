"""What is not a number never reaches the weights; and what a run does then."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llmtrain.spec.errors import DivergedError
from llmtrain.spec.plan import RunPlan
from llmtrain.spec.settings import GuardConfig
from llmtrain.training.optim import UpdateRule
from llmtrain.training.spikes import SpikeCounter

REMEDY = "lower recipe.lr_multiplier"


class RollBack(Exception):  # noqa: N818 - an order, not an error
    """The run is to go back to its newest checkpoint."""


def decides_on_device(optimizer: UpdateRule, device: torch.device) -> bool:
    """Return whether the device itself can drop an update, so that the host need not wait for it.

    torch's fused Adam and AdamW leave weights, moments and step count alone where `found_inf` is 1.
    """
    return (
        device.type != "cpu"
        and isinstance(optimizer, torch.optim.Adam)  # AdamW is one
        and bool(optimizer.defaults["fused"])
    )


class Guard:
    """Holds back every update whose loss or gradient norm is not finite, in its own step.

    Loss and norm are the same on all devices of a run, so all of them decide alike. The losses of
    steps that were held back become NaN: that is what the host reads later, and what a checkpoint
    keeps. Under `stop` and `rollback` a device that found one holds back all later updates too.
    """

    def __init__(
        self,
        config: GuardConfig,
        plan: RunPlan,
        optimizer: UpdateRule,
        device: torch.device,
    ) -> None:
        self.config, self.optimizer = config, optimizer
        self.failed: list[int] = []  # steps, from 0, that this process went back for
        self.final = config.on_nonfinite != "skip"
        self.held = False  # the last step, as the host saw it
        self.seen = "a loss or gradient norm that is not finite"
        self.n_skipped = 0
        self.spikes = SpikeCounter()
        ends = [sum(stage.n_steps for stage in plan.stages[:i]) for i in range(len(plan.stages))]
        self.edges = ends[1:]
        self.on_device = decides_on_device(optimizer, device)
        if self.on_device:
            self.taint = torch.zeros((), device=device)
            self.found = torch.zeros((), device=device)
            optimizer.found_inf = self.found  # type: ignore[attr-defined]

    def tensors(self) -> list[Tensor]:
        """Return what the device itself remembers of the steps so far."""
        return [self.taint, self.found] if self.on_device else []

    def step(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Apply the gradients unless a number is none; return the loss, NaN where held back."""
        if self.on_device:
            taint = (loss + norm) * 0.0  # 0, or NaN
            self.taint.copy_(taint + self.taint if self.final else taint)
            self.found.copy_(self.taint.isnan())
            self.optimizer.step()
            return loss + self.taint
        self.held = not math.isfinite(float(loss + norm))
        if not self.held:
            self.optimizer.step()
            return loss
        self.seen = f"loss {float(loss):g} with gradient norm {float(norm):g}"
        return torch.full_like(loss, math.nan)

    def must_act(self, *, wait: bool) -> bool:
        """Return whether a step was held back that the policy does not pass over.

        Where the device decides, it is asked only if `wait`: that stops the host until it is done.
        """
        if not self.final:
            return False
        return wait and bool(self.found > 0) if self.on_device else self.held

    def passes_over(self, step: int) -> bool:
        """Return whether a step, from 0, is left out: it failed again after the run went back."""
        return self.failed.count(step) > 1

    def verdict(self, step: int, reason: str) -> Exception:
        """Return what to raise because of a step, counted from 0: the end, or an order to go back.

        More than guard.max_skips failed steps end a run under every policy.
        """
        self.failed.append(step)
        again = self.config.on_nonfinite == "rollback" and self.failed.count(step) < 3
        if again and len(set(self.failed)) <= self.config.max_skips:
            return RollBack(f"{reason}; back to the newest checkpoint")
        return DivergedError(f"{reason}; {REMEDY}")

    def read(self, first_step: int, losses: Sequence[float], *, last: bool) -> None:
        """Count the held-back steps and the spikes among the losses of consecutive steps.

        `last`: there are no more. Raises DivergedError where guard says that there are too many.
        """
        self.n_skipped += sum(map(math.isnan, losses))
        if self.n_skipped > self.config.max_skips and self.config.on_nonfinite != "stop":
            raise DivergedError(
                f"{self.n_skipped} of the first {first_step + len(losses)} updates were held back "
                f"({self.seen}), more than guard.max_skips={self.config.max_skips}; {REMEDY}"
            )
        before = self.spikes.count
        self.spikes.read(first_step, losses, self.edges)
        if last:
            self.spikes.judge()
        if self.spikes.count > before and self.config.on_spike == "stop":
            assert self.spikes.last is not None
            step, loss, sds = self.spikes.last
            raise DivergedError(
                f"step {step + 1}: loss {loss:g} lies {sds:.1f} standard deviations above the ones "
                f"before it; {REMEDY} or set guard.on_spike=note"
            )

    def state(self) -> dict[str, Any]:
        """Return the counters and the window of losses."""
        return {"n_skipped": self.n_skipped, "spikes": self.spikes.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.n_skipped = state["n_skipped"]
        self.spikes.restore(state["spikes"])


def nonfinite_weight(model: nn.Module) -> str | None:
    """Return the name of a weight with a NaN or infinity in this device's part, or None."""
    parts = {
        name: weight.to_local() if hasattr(weight, "to_local") else weight
        for name, weight in model.named_parameters()
    }
    finite = torch.stack([part.detach().isfinite().all() for part in parts.values()])
    return None if bool(finite.all()) else list(parts)[int(finite.int().argmin())]
