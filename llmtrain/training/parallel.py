"""One run over several processes, one per device: which rows each trains, and what they share.

`Team` is a process on its own, and what the loop is written against; `Replicas` (DDP) and `Shards`
(FSDP2, shards.py) do the same with others. Collective methods are called by every process alike.
"""

import contextlib
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from llmtrain.spec.errors import ConfigError, LlmtrainError
from llmtrain.spec.placement import Placement, placement
from llmtrain.spec.settings import RuntimeConfig
from llmtrain.training.model import Transformer

Result = TypeVar("Result")
HOST = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Pass:
    """Rows that one device takes through the model at once."""

    rows: slice
    share: float
    """Of all rows of the batch; 0: a pass only for company, because the others have one more."""
    weight: float
    """Factor on the mean loss of these rows: share times devices, as gradients are averaged."""
    last: bool


class Team:
    """One process on one device; everything is already whole and agreed on."""

    rank = 0
    local_rank = 0
    n_devices = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def place(self, model: Transformer, device: torch.device) -> nn.Module:
        """Bring the model to the devices; return what a training pass calls."""
        return model.to(device)

    def passes(self, n_rows: int, rows_per_pass: int) -> list[Pass]:
        """Return this device's contiguous rows of `n_rows`, cut into passes.

        All devices get equally many passes: a pass is collective.
        """
        begin, end = (n_rows * rank // self.n_devices for rank in (self.rank, self.rank + 1))
        most = -(-n_rows // self.n_devices)
        found: list[Pass] = []
        for start in range(begin, begin + most, rows_per_pass):
            n = max(0, min(start + rows_per_pass, end) - start)
            rows = slice(start, start + n) if n > 0 else slice(0, 1)
            share = n / n_rows
            last = start + rows_per_pass >= begin + most
            found.append(Pass(rows, share, share * self.n_devices, last))
        return found

    def during(self, part: Pass) -> AbstractContextManager[None]:
        """Return the context of a pass forward and backward: when gradients are exchanged."""
        return nullcontext()

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over devices of a tensor on the device; collective."""
        return tensor

    def total(self, value: float) -> float:
        """Return the sum over devices of a number on the host; collective."""
        return value

    def highest(self, *values: int) -> tuple[int, ...]:
        """Return the largest of each number over devices; collective."""
        return values

    def lead(self, action: Callable[[], Result]) -> Result:
        """Let the leading process act; return its result, or raise its error; collective."""
        return action()

    def whole(self, tensor: Tensor) -> Tensor:
        """Return a tensor whose parts lie on several devices as one; collective."""
        return tensor

    def whole_state(self, state: Any) -> Any:
        """Return nested state with every tensor whole, for whoever leads; collective."""
        return state

    def parts_of_model(self, model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return this device's parts of whole weights."""
        return state

    def parts_of_optimizer(self, optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
        """Return this device's parts of an optimizer's whole state."""
        return state


ALONE = Team()


class Replicas(Team):
    """DDP: every process holds the whole model, and gradients are averaged."""

    def __init__(self, place: Placement) -> None:
        self.rank, self.local_rank = place.rank, place.local_rank
        self.n_devices = place.n_processes

    def place(self, model: Transformer, device: torch.device) -> nn.Module:
        """Bring the model to the device; return it under DDP."""
        with warnings.catch_warnings():
            # Buffers are constant tables: nothing to broadcast in every pass. torch 2.13 has a new
            # name for that, which 2.11 does not know.
            warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
            self.replica = DistributedDataParallel(
                model.to(device), broadcast_buffers=False, gradient_as_bucket_view=True
            )
        return self.replica

    def during(self, part: Pass) -> AbstractContextManager[None]:
        """Exchange gradients in the last pass of a step alone."""
        return nullcontext() if part.last else self.replica.no_sync()

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over devices of a tensor on the device; collective."""
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor

    def total(self, value: float) -> float:
        """Return the sum over devices of a number on the host; collective."""
        return float(self.sum(torch.tensor(value, dtype=torch.float64, device=HOST)))

    def highest(self, *values: int) -> tuple[int, ...]:
        """Return the largest of each number over devices; collective."""
        numbers = torch.tensor(values, dtype=torch.int64, device=HOST)  # no wait for the device
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return tuple(numbers.tolist())

    def lead(self, action: Callable[[], Result]) -> Result:
        """Let the leading process act; return its result, or raise its error; collective."""
        outcome: list[Any] = [None, None]
        if self.leads:
            try:
                outcome[0] = action()
            except LlmtrainError as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0, device=HOST)
        result, refusal = outcome
        if refusal is not None:
            raise refusal
        return result  # type: ignore[no-any-return]


@contextlib.contextmanager
def joined(config: RuntimeConfig) -> Iterator[Team]:
    """Join the processes of the run, or stay alone, for the time of a `with` block.

    A process group that is there already is used and left. Raises ConfigError where
    runtime.parallel and the way of starting do not fit each other, or there are fewer GPUs than
    processes.
    """
    place = placement(config.parallel)
    if config.parallel == "none":
        yield ALONE
        return
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        n_gpus = torch.cuda.device_count()
        if place.n_local > n_gpus:
            raise ConfigError(
                f"torchrun started {place.n_local} processes on {n_gpus} GPUs; "
                f"type --nproc-per-node {n_gpus}"
            )
        torch.cuda.set_device(place.local_rank)
    # gloo beside NCCL: what the processes agree on lies on the host and must not wait for a GPU.
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    team = _sharded(place) if config.parallel == "fsdp" else Replicas(place)
    try:
        yield team
    except LlmtrainError:  # raised in every process alike
        if ours:
            _ignore_sigterm()  # before anyone can leave
            team.highest(0)  # wait for all: then they leave as one
            dist.destroy_process_group()
        raise
    if ours:
        team.highest(0)
        dist.destroy_process_group()


def _sharded(place: Placement) -> Team:
    from llmtrain.training.shards import Shards  # noqa: PLC0415 - 0.5 s that other runs do not need

    return Shards(place)


def _ignore_sigterm() -> None:
    """Keep the exit code: torchrun sends SIGTERM as soon as the first process has left."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
