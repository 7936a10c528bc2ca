"""The whole optimizer step as one function of counters on the device: run as it is, or captured.

A CUDA graph replays kernels with the addresses they had: whatever changes from step to step (which
blocks, which rate, where the loss goes) is therefore looked up on the device, by its own counter.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from llmtrain.spec.check import check
from llmtrain.spec.plan import PlanStage, RunPlan
from llmtrain.spec.settings import TrainConfig, refused_by_graph
from llmtrain.training.batches import Batches, TokenSource
from llmtrain.training.optim import UpdateRule

WARM_UPS = 3  # what torch asks for before a capture: lazy libraries, autotuning, moments
Update = Callable[[PlanStage, Tensor, Tensor], tuple[Tensor, Tensor]]
"""One step on (stage, inputs, targets), returning the loss and the gradient norm."""


def wants_graph(config: TrainConfig, tokens: TokenSource) -> bool:
    """Return whether a run's steps are captured.

    Raises ConfigError for `on` without a GPU, or with more tokens than it holds.
    """
    wanted, on_gpu = config.runtime.cuda_graph, tokens.device.type == "cuda"
    if wanted == "auto":
        return on_gpu and tokens.resident is not None and refused_by_graph(config) is None
    check(
        wanted == "off" or on_gpu,
        "runtime.cuda_graph=on, but torch sees no GPU; use runtime.cuda_graph=off",
    )
    check(
        wanted == "off" or tokens.resident is not None,
        "runtime.cuda_graph=on, but the training tokens do not fit the GPU beside the model; use "
        "runtime.cuda_graph=off",
    )
    return wanted == "on"


class WholeStep:
    """Steps of a run that read nothing from the host: rates, blocks and losses lie in tables."""

    def __init__(
        self,
        plan: RunPlan,
        rates: Sequence[float],
        batches: Batches,
        optimizer: UpdateRule,
        update: Update,
    ) -> None:
        """`rates`: the schedule's rate of every step. The batches' tokens lie on the device."""
        self.plan, self.batches, self.optimizer, self.update = plan, batches, optimizer, update
        self.device = device = batches.source.device
        # A fused CUDA kernel reads a float32 rate; a CPU's reads any: then it is the eager step's.
        exact = torch.float32 if device.type == "cuda" else torch.float64
        self.rates = torch.tensor(rates, dtype=exact, device=device)
        starts = batches.order.starts(0, plan.n_steps * batches.blocks)
        self.starts = torch.from_numpy(starts).view(plan.n_steps, batches.blocks).to(device)
        self.losses = torch.zeros(plan.n_steps, device=device)
        self.norm = torch.zeros((), device=device)
        self.cursor = torch.zeros(1, dtype=torch.int64, device=device)
        self.at = -1  # what the cursor holds, as far as the host knows
        self.graphs: dict[PlanStage, torch.cuda.CUDAGraph] = {}
        self.pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        for group in optimizer.param_groups:
            group["lr"] = torch.zeros((), dtype=exact, device=device)

    def __call__(self, step: int, stage: PlanStage) -> tuple[Tensor, Tensor]:
        """Do a step; return its loss and gradient norm, to be read when the host wants them."""
        if self.device.type == "cuda" and stage not in self.graphs:
            self.capture(step, stage)
        self._point_to(step)
        if stage in self.graphs:
            self.graphs[stage].replay()
        else:
            self.run(stage)
        self.at += 1
        return self.losses[step], self.norm

    def run(self, stage: PlanStage) -> None:
        """Do the step that the cursor points to, and move the cursor."""
        rate = self.rates.index_select(0, self.cursor).squeeze(0)
        for group in self.optimizer.param_groups:
            torch.mul(rate, group["lr_scale"], out=group["lr"])
        starts = self.starts.index_select(0, self.cursor).squeeze(0)
        loss, norm = self.update(stage, *self.batches.cut(starts, stage))
        self.losses.index_copy_(0, self.cursor, loss.view(1))
        self.norm.copy_(norm)
        self.cursor.add_(1)

    def capture(self, step: int, stage: PlanStage) -> None:
        """Record the step of a stage; weights and moments are as before. On a CPU: rehearse it."""
        if self.device.type != "cuda":
            with self._undone():
                self._point_to(step)
                self.run(stage)
            return
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        with self._undone():
            aside.wait_stream(here)
            with torch.cuda.stream(aside):
                for _ in range(WARM_UPS):
                    self._point_to(step)
                    self.run(stage)
            here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            self.run(stage)
        self.graphs[stage] = graph

    def forget(self) -> None:
        """Drop what was captured: the optimizer's state has moved."""
        self.graphs.clear()
        self.at = -1

    def _point_to(self, step: int) -> None:
        if self.at != step:
            self.cursor.fill_(step)
            self.at = step

    @contextlib.contextmanager
    def _undone(self) -> Iterator[None]:
        """Take back what the `with` block does to weights and moments, in the same memory."""
        parameters = [p.detach() for g in self.optimizer.param_groups for p in g["params"]]
        before = [(tensor, tensor.clone()) for tensor in [*parameters, *self._moments()]]
        yield
        known = {id(tensor) for tensor, _ in before}
        for tensor in self._moments():
            if id(tensor) not in known:  # it was not there: every moment starts at zero
                tensor.zero_()
        for tensor, old in before:
            tensor.copy_(old)
        self.at = -1

    def _moments(self) -> list[Tensor]:
        state: dict[Any, dict[str, Any]] = self.optimizer.state  # type: ignore[attr-defined]
        return [value for entry in state.values() for value in entry.values()]
