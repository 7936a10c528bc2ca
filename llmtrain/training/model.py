"""A decoder-only transformer: pre-norm blocks, one fused projection for queries, keys and values.

Letters on tensors: B batch, T time, N = B T tokens, D width, V vocabulary.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from llmtrain.spec.config import ModelConfig
from llmtrain.spec.settings import HEAD_ROWS
from llmtrain.training import mup
from llmtrain.training.layers import (
    Attention,
    Block,
    Embedding,
    Linear,
    build_norm,
    linear,
    rotary_table,
    window_mask,
)

ParameterRole = Literal["embedding", "hidden", "head", "vector"]


class Transformer(nn.Module):
    """A decoder-only language model; weights are NaN until `init_weights` or a checkpoint.

    The blocks are `self.blocks`, so that a caller can compile or shard them one by one.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        vocab_size: int,
        seq_len: int,
        activation_checkpointing: bool = False,
        attention: str = "auto",
    ) -> None:
        """`attention`: the kernel to try first, one of layers.KERNELS, or auto."""
        super().__init__()
        self.config, self.vocab_size, self.seq_len = config, vocab_size, seq_len
        self.activation_checkpointing = activation_checkpointing
        self.output_scale = mup.output_scale(config)
        self.embedding = Embedding(vocab_size, config.d_model)
        learned = config.position == "learned"
        self.position = Embedding(seq_len, config.d_model) if learned else None
        self.blocks = nn.ModuleList(Block(config, attention) for _ in range(config.n_layers))
        self.final_norm = build_norm(config)
        self.head = None if config.tied_head else Linear(config.d_model, vocab_size, bias=False)
        if not learned:
            turns = rotary_table(seq_len, config.d_head, config.rope_base)
            self.register_buffer("turns", turns, persistent=False)

    def forward(
        self, tokens_BT: Tensor, *, window: int | None = None, targets_BT: Tensor | None = None
    ) -> Tensor:
        """Return logits (B, T, V) for T up to seq_len, or with targets their `chunked_nll`.

        With a window every token sees itself and the window - 1 tokens before it, else all.
        Raises ValueError for more than seq_len tokens or a window below 1.
        """
        n_tokens = tokens_BT.shape[1]
        if n_tokens > self.seq_len:
            raise ValueError(
                f"{n_tokens} tokens in a row exceed the model's seq_len={self.seq_len}"
            )
        if window is not None and window < 1:
            raise ValueError(f"window={window} must be at least 1: a token sees itself")
        mask_TT = None
        if window is not None and window < n_tokens:
            mask_TT = window_mask(n_tokens, window, tokens_BT.device)
        x_BTD: Tensor = self.embedding(tokens_BT)
        rotary = None
        if self.position is not None:
            x_BTD = self.position.added_to(x_BTD)
        else:
            rotary = self.get_buffer("turns")[:n_tokens]
        x_ND = x_BTD.flatten(0, 1)
        for block in self.blocks:
            if self.activation_checkpointing and self.training:
                x_ND = checkpoint(
                    block,
                    x_ND,
                    n_tokens,
                    rotary,
                    mask_TT,
                    use_reentrant=False,
                    preserve_rng_state=self.config.dropout > 0,  # a CUDA graph cannot read it
                )
            else:
                x_ND = block(x_ND, n_tokens, rotary, mask_TT)
        x_ND = self.final_norm(x_ND)
        if self.output_scale != 1.0:  # on the stream, not the logits: D is smaller than V
            x_ND = x_ND * self.output_scale
        if targets_BT is not None:
            return chunked_nll(x_ND, self.head_weight, targets_BT.flatten())
        return linear(x_ND, self.head_weight).view(*tokens_BT.shape, -1)

    @property
    def head_weight(self) -> Tensor:
        """The (V, D) output matrix: the embedding table itself where the head is tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    def parameter_roles(self) -> dict[str, ParameterRole]:
        """Map every parameter's name to its role; a tied table is an embedding.

        hidden: matrices inside the blocks; vector: norm gains and biases.
        """
        roles: dict[str, ParameterRole] = {}
        for module_name, module in self.named_modules():
            for name, _ in module.named_parameters(recurse=False):
                role: ParameterRole = "vector"
                if isinstance(module, Embedding):
                    role = "embedding"
                elif isinstance(module, Linear) and name == "weight":
                    role = "head" if module is self.head else "hidden"
                roles[f"{module_name}.{name}"] = role
        return roles

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draw all weights from a CPU generator of their own: the same on every device.

        fan_in: hidden matrices normal with std 1/sqrt(fan_in), but those that write to the residual
        stream 0, so that every block starts as the identity (Goyal et al. 2017, arXiv 1706.02677,
        section 5.1, for convolutions; measured here on tiny models, docs/experiments.md); the
        untied head has std 1/d_model, so that logits start with std 1/sqrt(d_model) and the loss
        within .04 of ln V from width 16 up.
        fixed: all matrices init_std, those that write to the residual stream divided by
        sqrt(2 n_layers) (GPT-2, Radford et al. 2019, section 2.3).
        Tables have std init_std, gains are 1, biases 0; muP changes what mup.py says.
        """
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, Linear | Embedding):
                std = self._std(module)
                weight = torch.randn(module.weight.shape, generator=generator)
                module.weight.copy_(weight.mul_(std))
                if isinstance(module, Linear) and module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.RMSNorm | nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, Attention) and module.qk_gain is not None:
                module.qk_gain.fill_(1.0)

    def _std(self, module: Linear | Embedding) -> float:
        config = self.config
        if isinstance(module, Embedding):
            return config.init_std
        if config.init == "fan_in":
            if module is self.head:
                return mup.head_std(config)
            return 0.0 if module.residual else 1.0 / math.sqrt(module.in_features)
        if module is self.head:
            return config.init_std
        std = mup.fixed_hidden_std(config)
        return std / math.sqrt(2 * config.n_layers) if module.residual else std


def cross_entropy(
    logits_BTV: Tensor, targets_BT: Tensor, *, z_loss: float
) -> tuple[Tensor, Tensor]:
    """Return the mean negative log-likelihood in nats (detached) and the loss to differentiate.

    Both are float32 scalars; the loss adds z_loss times the mean squared log-partition. Source of
    the z-loss: Chowdhery et al. 2022 (arXiv 2204.02311), section 5.
    """
    logits = logits_BTV.flatten(0, -2).float()
    nll = functional.cross_entropy(logits, targets_BT.flatten())
    if z_loss == 0.0:
        return nll.detach(), nll
    return nll.detach(), nll + z_loss * logits.logsumexp(dim=-1).square().mean()


def chunked_nll(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Return the mean negative log-likelihood in nats, from the logits of a few rows at a time.

    Gradients are computed on the way, so `backward` goes once. All of it is float32, whatever
    autocast says: of bfloat16 inputs torch sums and returns the loss in bfloat16, percents off.
    """
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=HEAD_ROWS, acc_policy="compact")
    with torch.autocast(x_ND.device.type, enabled=False):
        return functional.linear_cross_entropy(x_ND.float(), weight_VD, targets_N, options=options)


def parameter_counts(model: Transformer) -> dict[str, int]:
    """Count parameters under three conventions, measured from the modules.

    non_embedding: matrices of the blocks; no_input_embedding: those and the head, tied or not;
    total: every trainable parameter, a tied table once.
    """
    roles = model.parameter_roles()
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    non_embedding = sum(size for name, size in sizes.items() if roles[name] == "hidden")
    return {
        "non_embedding": non_embedding,
        "no_input_embedding": non_embedding + model.head_weight.numel(),
        "total": sum(sizes.values()),
    }
