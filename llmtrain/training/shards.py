"""FSDP2: one run whose parameters are spread over several devices."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from llmtrain.training.model import Transformer
from llmtrain.training.parallel import Pass, Replicas


class Shards(Replicas):
    """FSDP2: every process holds a part of each parameter, its gradient and its moments."""

    def place(self, model: Transformer, device: torch.device) -> nn.Module:
        """Shard block by block, then the rest, moving the parts to the device; return the model."""
        mesh = init_device_mesh(device.type, (self.n_devices,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model

    def during(self, part: Pass) -> AbstractContextManager[None]:
        """Exchange gradients in every pass: keeping whole ones would take back the memory."""
        return nullcontext()

    def whole(self, tensor: Tensor) -> Tensor:
        """Return a tensor whose parts lie on several devices as one; collective."""
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def whole_state(self, state: Any) -> Any:
        """Return nested state with every tensor whole, for whoever leads; collective."""
        if isinstance(state, dict):
            return {key: self.whole_state(value) for key, value in state.items()}
        if isinstance(state, list):
            return [self.whole_state(value) for value in state]
        if isinstance(state, DTensor):
            whole = state.full_tensor()  # one at a time on the device, kept by one process
            return whole.detach().cpu() if self.leads else None
        return state

    def parts_of_model(self, model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return this device's parts of whole weights."""
        parameters = dict(model.named_parameters())
        return {name: _part(whole, parameters[name]) for name, whole in state.items()}

    def parts_of_optimizer(self, optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
        """Return this device's parts of an optimizer's whole state."""
        if "state" not in state:  # two rules stepped as one, each with its own
            return {
                name: self.parts_of_optimizer(getattr(optimizer, name), part)
                for name, part in state.items()
            }
        # torch numbers the parameters through the groups.
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        moments = {
            number: {name: _part(value, parameters[number]) for name, value in values.items()}
            for number, values in state["state"].items()
        }
        return state | {"state": moments}


def _part(whole: Any, parameter: Tensor) -> Any:
    """Return this device's part of something shaped like a sharded parameter; all else as it is."""
    if not isinstance(parameter, DTensor) or not isinstance(whole, Tensor):
        return whole
    if whole.shape != parameter.shape:
        return whole
    # Every process has read the whole tensor, so nothing is sent.
    return distribute_tensor(
        whole.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        src_data_rank=None,
    )
