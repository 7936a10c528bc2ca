"""The loss of some rows through a model: from all their logits, or from a few tokens' at a time."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from llmtrain.spec.check import check
from llmtrain.spec.settings import RuntimeConfig, TrainConfig
from llmtrain.training.model import cross_entropy
from llmtrain.training.runtime import autocast


def refuse_missing_head(config: RuntimeConfig) -> None:
    """Raise ConfigError for a chunked loss head where torch has none."""
    check(
        config.loss_head == "full" or hasattr(functional, "linear_cross_entropy"),
        f"runtime.loss_head={config.loss_head} needs torch 2.13, and here is torch "
        f"{torch.__version__}; use a newer torch or runtime.loss_head=full",
    )


class LossHead:
    """Training's loss, as the run's configuration says; evaluations have all logits."""

    def __init__(
        self, config: TrainConfig, forward: Callable[..., Tensor], device: torch.device
    ) -> None:
        """`forward` is the Transformer's, or that of what the team wrapped around it."""
        self.config, self.forward, self.device = config, forward, device

    def __call__(
        self, inputs: Tensor, targets: Tensor, window: int | None
    ) -> tuple[Tensor, Tensor]:
        """Return the mean negative log-likelihood (detached) and the loss to differentiate.

        Both are float32 scalars, in nats. No logits outlive the call but those autograd keeps.
        """
        with autocast(self.device, self.config.runtime):
            if self.config.runtime.loss_head == "chunked":
                nll = self.forward(inputs, window=window, targets_BT=targets)
                return nll.detach(), nll
            logits = self.forward(inputs, window=window)
        return cross_entropy(logits, targets, z_loss=self.config.optimizer.z_loss)
