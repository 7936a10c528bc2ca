"""The whole optimizer step as one function of counters on the device: run as it is, or captured.

A CUDA graph replays kernels with the addresses they had: whatever changes from step to step (which
blocks, which rate, where the loss goes) is therefore looked up on the device, by its own counter.
"""

import contextlib
import functools
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from llmtrain.spec.check import check
from llmtrain.spec.plan import PlanStage, RunPlan
from llmtrain.spec.settings import TrainConfig, refused_by_graph
from llmtrain.training.batches import Batches, TokenSource
from llmtrain.training.guard import Guard
from llmtrain.training.optim import UpdateRule

WARM_UPS = 3  # what torch asks for before a capture: lazy libraries, autotuning, moments


def wants_graph(config: TrainConfig, tokens: TokenSource) -> bool:
    """Return whether a run's steps are captured.

    Raises ConfigError for `on` with more tokens than the GPU holds, or without a GPU.
    """
    wanted, on_gpu = config.runtime.cuda_graph, tokens.device.type == "cuda"
    if wanted == "auto":
        return on_gpu and tokens.resident is not None and refused_by_graph(config) is None
    check(
        wanted == "off" or tokens.resident is not None,
        "runtime.cuda_graph=on, but the training tokens do not fit the GPU beside the model; use "
        "runtime.cuda_graph=off",
    )
    return wanted == "on"


@functools.cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream of warm-ups and captures: cuBLAS may keep a workspace for each."""
    return torch.cuda.Stream(device)


class Tables:
    """What one run's steps look up on the device, and where they leave their losses."""

    def __init__(
        self,
        plan: RunPlan,
        rates: Sequence[float],
        batches: Batches,
        optimizer: UpdateRule,
        guard: Guard,
    ) -> None:
        """`rates`: the schedule's rate of every step. The batches' tokens lie on the device."""
        self.batches, self.optimizer, self.guard = batches, optimizer, guard
        self.device = device = batches.source.device
        # A fused CUDA kernel reads a float32 rate; a CPU's reads any: then it is the eager step's.
        exact = torch.float32 if device.type == "cuda" else torch.float64
        self.rates = torch.tensor(rates, dtype=exact, device=device)
        starts = batches.order.starts(0, plan.n_steps * batches.blocks)
        self.starts = torch.from_numpy(starts).view(plan.n_steps, batches.blocks).to(device)
        self.losses = torch.zeros(plan.n_steps, device=device)
        self.norm = torch.zeros((), device=device)
        self.cursor = torch.zeros(1, dtype=torch.int64, device=device)
        for group in optimizer.param_groups:
            group["lr"] = torch.zeros((), dtype=exact, device=device)

    def batch(self, stage: PlanStage) -> tuple[Tensor, Tensor]:
        """Set the rate of the step under the cursor; return its inputs and targets."""
        rate = self.rates.index_select(0, self.cursor).squeeze(0)
        for group in self.optimizer.param_groups:
            torch.mul(rate, group["lr_scale"], out=group["lr"])
        starts = self.starts.index_select(0, self.cursor).squeeze(0)
        return self.batches.cut(starts, stage)

    def note(self, loss: Tensor, norm: Tensor) -> None:
        """Keep what the step gave, and move the cursor."""
        self.losses.index_copy_(0, self.cursor, loss.view(1))
        self.norm.copy_(norm)
        self.cursor.add_(1)

    def kept(self) -> list[Tensor]:
        """Return the weights, and what the guard keeps."""
        weights = [p.detach() for group in self.optimizer.param_groups for p in group["params"]]
        return [*weights, *self.guard.tensors()]

    def moments(self) -> list[Tensor]:
        """Return what the optimizer keeps of the weights so far."""
        state: dict[Any, dict[str, Any]] = self.optimizer.state  # type: ignore[attr-defined]
        return [value for entry in state.values() for value in entry.values()]


class WholeStep:
    """Steps of a run, or of several at once, that read nothing from the host."""

    def __init__(self, tables: Sequence[Tables], run: Callable[[PlanStage], None]) -> None:
        """`run`, a method, does the step under the cursors of all tables, and moves them.

        Its owner keeps this object, and is freed with all its memory as soon as nobody keeps it.
        """
        self.tables, self.method = list(tables), weakref.WeakMethod(run)
        self.device = self.tables[0].device
        self.at = -1  # where the cursors stand, as far as the host knows
        self.graphs: dict[PlanStage, torch.cuda.CUDAGraph] = {}

    def __call__(self, step: int, stage: PlanStage) -> list[Tables]:
        """Do a step; return the tables, where its losses and norms are when the host wants them."""
        if self.device.type == "cuda" and stage not in self.graphs:
            self.capture(step, stage)
        self._point_to(step)
        if stage in self.graphs:
            self.graphs[stage].replay()
        else:
            self.run(stage)
        self.at += 1
        return self.tables

    def run(self, stage: PlanStage) -> None:
        """Do the step under the cursors as it is."""
        method = self.method()
        assert method is not None
        method(stage)

    def capture(self, step: int, stage: PlanStage) -> None:
        """Record the step of a stage; weights and moments are as before. On a CPU: rehearse it."""
        if self.device.type != "cuda":
            with self._undone():
                self._point_to(step)
                self.run(stage)
            return
        here, aside = torch.cuda.current_stream(), side_stream(self.device)
        with self._undone(), warnings.catch_warnings():
            # torch warns of a capturable optimizer's step outside of a graph.
            warnings.filterwarnings("ignore", "This instance was constructed with capturable")
            aside.wait_stream(here)
            with torch.cuda.stream(aside):
                for _ in range(WARM_UPS):
                    self._point_to(step)
                    self.run(stage)
                    self.at = -1
            here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # The others' memory, not a handle of our own: torch refuses one that has lost all graphs.
        pool = next((other.pool() for other in self.graphs.values()), None)
        with torch.cuda.graph(graph, pool=pool, stream=aside):
            self.run(stage)
        self.graphs[stage] = graph

    def forget(self) -> None:
        """Drop what was captured: the optimizer's state has moved."""
        self.graphs.clear()
        self.at = -1

    def _point_to(self, step: int) -> None:
        if self.at != step:
            for tables in self.tables:
                tables.cursor.fill_(step)
            self.at = step

    @contextlib.contextmanager
    def _undone(self) -> Iterator[None]:
        """Take back what the `with` block does to weights, moments and guard, in their memory."""
        kept = [t for tables in self.tables for t in (*tables.kept(), *tables.moments())]
        before = [(tensor, tensor.clone()) for tensor in kept]
        yield
        known = {id(tensor) for tensor in kept}
        for tensor in (t for tables in self.tables for t in tables.moments()):
            if id(tensor) not in known:  # it was not there: every moment starts at zero
                tensor.zero_()
        for tensor, old in before:
            tensor.copy_(old)
        self.at = -1
