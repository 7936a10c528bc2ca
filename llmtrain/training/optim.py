"""Optimizers from torch.optim, with the groups that decay and parametrisation need."""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from llmtrain.spec.config import OptimizerConfig
from llmtrain.training.fused import HostAdamW, lie_whole_on_host
from llmtrain.training.model import Transformer
from llmtrain.training.mup import width_multiplier

ParamGroup = dict[str, Any]
MACHINES_OWN = ("lr", "capturable")  # how a group's rate is kept and its step done here


class Hyper(Protocol):
    """The numbers a recipe gives: rate after warmup, betas, decoupled weight decay."""

    @property
    def peak_lr(self) -> float:
        """Learning rate after warmup."""

    @property
    def beta1(self) -> float:
        """First-moment decay."""

    @property
    def beta2(self) -> float:
        """Second-moment decay."""

    @property
    def weight_decay(self) -> float:
        """Decay of matrices, multiplied by the learning rate each step."""


class UpdateRule(Protocol):
    """What the training loop needs of an optimizer; every torch optimizer offers it."""

    @property
    def param_groups(self) -> list[ParamGroup]:
        """Live groups, each with `lr` and `lr_scale`."""

    def step(self) -> Any:
        """Apply the gradients."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that continuing needs."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""


class MuonWithAdamW:
    """Muon on the blocks' matrices and AdamW on the rest, stepped as one."""

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        self.muon, self.adamw = muon, adamw

    @property
    def param_groups(self) -> list[ParamGroup]:
        """Groups of both, Muon's first."""
        return [*self.muon.param_groups, *self.adamw.param_groups]

    def step(self) -> None:
        """Apply the gradients."""
        self.muon.step()
        self.adamw.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])


def parameter_groups(
    model: Transformer, hyper: Hyper, *, matrix_optimizer: str
) -> list[ParamGroup]:
    """Split all parameters into groups `hidden`, `head` and `no_decay`; empty groups are left out.

    Matrices of the blocks and an untied head decay; norm gains, biases and embeddings (a tied
    table, positions) do not. `lr_scale` is the group's rate over the schedule's: 1 but for the
    hidden matrices under muP, whose factor depends on the update rule, `adam` or `muon`.
    """
    m = width_multiplier(model.config)
    hidden_factor = m if matrix_optimizer == "adam" else math.sqrt(m)
    settings = {
        "hidden": (1.0 / hidden_factor, hyper.weight_decay * hidden_factor),
        "head": (1.0, hyper.weight_decay),
        "no_decay": (1.0, 0.0),
    }
    group_of_role = {"embedding": "no_decay", "vector": "no_decay"}
    members: dict[str, list[nn.Parameter]] = {name: [] for name in settings}
    roles = model.parameter_roles()
    for name, parameter in model.named_parameters():
        members[group_of_role.get(roles[name], roles[name])].append(parameter)
    return [
        {
            "params": members[name],
            "name": name,
            "lr": hyper.peak_lr * lr_scale,
            "lr_scale": lr_scale,
            "weight_decay": weight_decay,
        }
        for name, (lr_scale, weight_decay) in settings.items()
        if members[name]
    ]


def build_optimizer(
    model: Transformer,
    config: OptimizerConfig,
    hyper: Hyper,
    *,
    fused: bool,
    capturable: bool = False,
) -> UpdateRule:
    """Return the update rule over all parameters of the model.

    `fused` picks torch's one-kernel step where the rule has one (AdamW, Adam, the AdamW beside
    Muon); `capturable` lets a CUDA graph record it (AdamW and Adam, on a GPU alone). Adam is
    without decay, whatever the recipe says; NAdam's decay is decoupled, as AdamW's.
    Sources: Loshchilov and Hutter 2019 (arXiv 1711.05101) for AdamW; Liu et al. 2025 (arXiv
    2502.16982), section 2.2, for Muon's update, scaled to the root mean square of AdamW's.
    """
    adam: dict[str, Any] = {
        "betas": (hyper.beta1, hyper.beta2),
        "eps": config.eps / width_multiplier(model.config),
    }
    matrix_optimizer = "muon" if config.name == "muon" else "adam"
    groups = parameter_groups(model, hyper, matrix_optimizer=matrix_optimizer)
    if config.name == "adamw":
        return _adamw(groups, fused=fused, capturable=capturable, **adam)
    if config.name == "adam":
        undecayed = [{**group, "weight_decay": 0.0} for group in groups]
        return torch.optim.Adam(undecayed, fused=fused, capturable=capturable, **adam)
    if config.name == "nadam":
        return torch.optim.NAdam(groups, decoupled_weight_decay=True, **adam)
    hidden, rest = groups[:1], groups[1:]
    for group in hidden:
        group["lr_scale"] *= config.muon_lr_scale
        group["lr"] *= config.muon_lr_scale
    muon = torch.optim.Muon(hidden, momentum=config.muon_momentum, adjust_lr_fn="match_rms_adamw")
    return MuonWithAdamW(muon, _adamw(rest, fused=fused, **adam))


def _adamw(groups: list[ParamGroup], *, fused: bool, **settings: Any) -> torch.optim.AdamW:
    parameters = [p for group in groups for p in group["params"]]
    if fused and lie_whole_on_host(parameters):
        return HostAdamW(groups, **settings)
    return torch.optim.AdamW(groups, fused=fused, **settings)


def set_lr(optimizer: UpdateRule, lr: float) -> None:
    """Give every group the schedule's rate times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def portable_state(optimizer: UpdateRule) -> dict[str, Any]:
    """Return an optimizer's state without what is this machine's: rates are numbers again."""
    state = optimizer.state_dict()
    if "param_groups" in state:
        state["param_groups"] = [
            {**group, "lr": float(group["lr"]), "capturable": False}
            if isinstance(group["lr"], Tensor)
            else group
            for group in state["param_groups"]
        ]
    return state


def load_state(optimizer: UpdateRule, state: dict[str, Any]) -> None:
    """Continue from a state; how rates are kept and steps are done stays this machine's own."""
    mine: list[ParamGroup] = [
        {name: group[name] for name in MACHINES_OWN if name in group}
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(state)
    for group, settings in zip(optimizer.param_groups, mine, strict=True):
        rate = group["lr"]
        group.update(settings)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(float(rate))
        else:
            group["lr"] = rate


def clip_gradients(parameters: Sequence[Tensor], max_norm: float | None) -> Tensor:
    """Scale all gradients to a global norm of at most max_norm; return the norm before, a scalar.

    All lie on one device, as the parameters of a run do: torch's `clip_grad_norm_` does the same to
    any, and first sorts them by device and type. None does not clip. Nothing is read back.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if max_norm is not None:
        torch._foreach_mul_(gradients, torch.clamp(max_norm / (norm + 1e-6), max=1.0))
    return norm


def drop_gradients(parameters: Sequence[Tensor]) -> None:
    """Forget the gradients and free their memory."""
    for parameter in parameters:
        parameter.grad = None
