"""torch's fused AdamW for a CPU, without the search for its tensors in every step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

Lists = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor], Tensor]
"""A group's parameters, first and second moments, step counts, and these counts as one tensor."""


def lie_whole_on_host(parameters: Sequence[Tensor]) -> bool:
    """Return whether all are plain tensors in the host's memory: no shards, no other device."""
    return all(type(p) is nn.Parameter and p.device.type == "cpu" for p in parameters)


class HostAdamW(torch.optim.AdamW):
    """torch's update with torch's kernel and state; what it is applied to is looked up once.

    A small model's step takes longer to find its tensors, and to add one to each of their counts,
    than to update them. All gradients must be there or none of a group, as after every backward
    pass of a model; torch's own step takes over where they are not.
    """

    def __init__(self, groups: list[dict[str, Any]], **settings: Any) -> None:
        """Take the settings of torch.optim.AdamW; it is fused."""
        super().__init__(groups, fused=True, **settings)
        self._lists: list[Lists] = []

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply the gradients."""
        held_back: Tensor | None = getattr(self, "found_inf", None)  # 1 where nothing is to change
        gradients = [[p.grad for p in group["params"]] for group in self.param_groups]
        if not self._lists or any(g is None for group in gradients for g in group):
            super().step(closure)  # makes the state, the first time
            self._lists = self._found()
            return
        for group, found, mine in zip(self.param_groups, self._lists, gradients, strict=True):
            parameters, first, second, counts, all_counts = found
            all_counts.add_(1)
            beta1, beta2 = group["betas"]
            torch._fused_adamw_(
                parameters,
                mine,
                first,
                second,
                [],
                counts,
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
                found_inf=held_back,
            )
            if held_back is not None:
                all_counts.sub_(held_back)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        super().load_state_dict(state_dict)
        self._lists = []

    def _found(self) -> list[Lists]:
        """Return what every group's update works on; its counts become parts of one tensor."""
        found: list[Lists] = []
        for group in self.param_groups:
            states = [self.state[p] for p in group["params"]]
            if not all(states):
                return []  # a parameter without a gradient so far
            all_counts = torch.stack([state["step"] for state in states])
            for state, count in zip(states, all_counts.unbind(), strict=True):
                state["step"] = count
            first, second, counts = (
                [state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step")
            )
            found.append((group["params"], first, second, counts, all_counts))
        return found
