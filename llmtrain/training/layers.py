"""The parts of the transformer: linear layers, norms, rotary positions, attention, MLP, block.

Letters on tensors: B batch, T time, D width, H heads, K head width, F MLP width, R replicas.

Every parameter may have a leading axis of R replicas (stacked.py): then the batch holds R equal
parts in the same order, and each part meets its own replica's weights.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmtrain.spec.config import ModelConfig
from llmtrain.training import mup


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + b over the last axis; a stack of matrices as one batched product."""
    if weight.ndim == 2:
        return functional.linear(x, weight, bias)
    x_RND, weight_RDF = x.reshape(len(weight), -1, x.shape[-1]), weight.transpose(1, 2)
    if bias is None:
        y_RNF = torch.bmm(x_RND, weight_RDF)
    else:
        y_RNF = torch.baddbmm(bias.unsqueeze(1), x_RND, weight_RDF)
    y: Tensor = y_RNF.view(*x.shape[:-1], -1)
    return y


def scaled(x: Tensor, gain: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x times a stack's gains, each replica's over its part of the batch, plus biases."""
    y = x.unflatten(0, (len(gain), -1)) * gain[:, None, None]
    if bias is not None:
        y = y + bias[:, None, None]
    whole: Tensor = y.flatten(0, 1)
    return whole


class Linear(nn.Linear):
    """A linear layer whose weights come from `Transformer.init_weights` alone."""

    def __init__(self, fan_in: int, fan_out: int, *, bias: bool, residual: bool = False) -> None:
        super().__init__(fan_in, fan_out, bias=bias)
        self.residual = residual  # writes to the residual stream: starts smaller, see init_weights

    def reset_parameters(self) -> None:
        """Fill with NaN: no draw from the global generator, and a forgotten init is loud."""
        for parameter in self.parameters(recurse=False):
            nn.init.constant_(parameter, math.nan)

    def forward(self, x: Tensor) -> Tensor:
        """Map the last axis."""
        return linear(x, self.weight, self.bias)


class Embedding(nn.Embedding):
    """A lookup table whose rows come from `Transformer.init_weights` alone."""

    def reset_parameters(self) -> None:
        """Fill with NaN, as Linear does."""
        nn.init.constant_(self.weight, math.nan)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Return the row of every token; shape (B, T, D)."""
        if self.weight.ndim == 2:
            return super().forward(tokens_BT)
        n_replicas, n_rows, _ = self.weight.shape
        first_R11 = n_rows * torch.arange(n_replicas, device=tokens_BT.device).view(-1, 1, 1)
        row_BT = (tokens_BT.unflatten(0, (n_replicas, -1)) + first_R11).flatten(0, 1)
        return functional.embedding(row_BT, self.weight.flatten(0, 1))

    def added_to(self, x_BTD: Tensor) -> Tensor:
        """Return x plus row t of the table at time t."""
        n_tokens = x_BTD.shape[1]
        if self.weight.ndim == 2:
            return x_BTD + self.weight[:n_tokens]
        x_RBTD = x_BTD.unflatten(0, (len(self.weight), -1))
        added: Tensor = (x_RBTD + self.weight[:, None, :n_tokens]).flatten(0, 1)
        return added


class RMSNorm(nn.RMSNorm):
    """torch's, of one model or of a stack."""

    def forward(self, x: Tensor) -> Tensor:
        """Norm over the last axis."""
        if self.weight.ndim == 1:
            return super().forward(x)
        return scaled(functional.rms_norm(x, self.normalized_shape, eps=self.eps), self.weight)


class LayerNorm(nn.LayerNorm):
    """torch's, of one model or of a stack."""

    def forward(self, x: Tensor) -> Tensor:
        """Norm over the last axis."""
        if self.weight.ndim == 1:
            return super().forward(x)
        normed = functional.layer_norm(x, self.normalized_shape, eps=self.eps)
        return scaled(normed, self.weight, self.bias)


def build_norm(config: ModelConfig) -> nn.Module:
    """Return the norm over the width that the configuration names."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.d_model, eps=1e-6)
    return LayerNorm(config.d_model, eps=1e-5, bias=config.bias)


def rotary_tables(seq_len: int, d_head: int, base: float) -> tuple[Tensor, Tensor]:
    """Return cosine and signed sine of the rotary angles, each (seq_len, 1, 1, d_head), float32.

    Feature i turns together with feature i + d_head/2; the sine's first half is negative, so that
    `rotate` needs no slices. Source: Su et al. 2021 (arXiv 2104.09864), section 3.2.2.
    """
    frequency = base ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
    angle = torch.outer(torch.arange(seq_len, dtype=torch.float64), frequency)
    cos = torch.cat([angle.cos(), angle.cos()], dim=1)
    sin = torch.cat([-angle.sin(), angle.sin()], dim=1)
    shape = (seq_len, 1, 1, d_head)
    return cos.float().view(shape), sin.float().view(shape)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the last axis of x, (B, T, 2, H, K), by the angles in rows 0..T-1 of the tables."""
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


def window_mask(n_tokens: int, window: int, device: torch.device) -> Tensor:
    """Return the (T, T) bool mask in which a token sees itself and the window - 1 before it."""
    position_T = torch.arange(n_tokens, device=device)
    distance_TT = position_T[:, None] - position_T[None, :]
    return (distance_TT >= 0) & (distance_TT < window)


class Attention(nn.Module):
    """Causal multi-head attention through torch's fused kernel."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.d_head = config.n_heads, config.d_head
        self.scale = mup.attention_scale(config)
        self.qkv = Linear(config.d_model, 3 * config.d_model, bias=config.bias)
        self.out = Linear(config.d_model, config.d_model, bias=config.bias, residual=True)
        self.qk_gain = nn.Parameter(torch.ones(2, 1, config.d_head)) if config.qk_norm else None

    def forward(
        self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor] | None, mask_TT: Tensor | None
    ) -> Tensor:
        """Attend under the mask, or over all earlier tokens where it is None; shape (B, T, D)."""
        B, T, D = x_BTD.shape
        qkv = self.qkv(x_BTD).view(B, T, 3, self.n_heads, self.d_head)
        qk, v_BT1HK = qkv.split((2, 1), dim=2)
        if self.qk_gain is not None:
            qk = functional.rms_norm(qk, (self.d_head,), eps=1e-6)
            stacked = self.qk_gain.ndim == 4
            qk = scaled(qk, self.qk_gain) if stacked else qk * self.qk_gain
        if rotary is not None:
            qk = rotate(qk, *rotary)
        # Gains and tables are float32; under autocast the kernel wants one dtype for all three.
        q_BTHK, k_BTHK = qk.to(v_BT1HK.dtype).unbind(2)
        y_BHTK = functional.scaled_dot_product_attention(
            q_BTHK.transpose(1, 2),
            k_BTHK.transpose(1, 2),
            v_BT1HK.squeeze(2).transpose(1, 2),
            attn_mask=mask_TT,
            is_causal=mask_TT is None,
            scale=self.scale,
        )
        attended: Tensor = self.out(y_BHTK.transpose(1, 2).reshape(B, T, D))
        return attended


class MLP(nn.Module):
    """The position-wise branch: GELU (tanh form, as GPT-2), squared ReLU, or SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        n_up = 2 if config.activation == "swiglu" else 1
        self.up = Linear(config.d_model, n_up * config.d_ff, bias=config.bias)
        self.down = Linear(config.d_ff, config.d_model, bias=config.bias, residual=True)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map every token by itself; shape (B, T, D)."""
        h_BTF: Tensor = self.up(x_BTD)
        if self.activation == "gelu":
            h_BTF = functional.gelu(h_BTF, approximate="tanh")
        elif self.activation == "relu2":
            h_BTF = functional.relu(h_BTF).square()
        else:
            gate_BTF, value_BTF = h_BTF.chunk(2, dim=-1)
            h_BTF = functional.silu(gate_BTF) * value_BTF
        mapped: Tensor = self.down(h_BTF)
        return mapped


class Block(nn.Module):
    """One layer: attention, then the MLP, each on a normed copy and added to the stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = build_norm(config)
        self.attention = Attention(config)
        self.mlp_norm = build_norm(config)
        self.mlp = MLP(config)
        self.dropout = config.dropout

    def forward(
        self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor] | None, mask_TT: Tensor | None
    ) -> Tensor:
        """Add both branches to the residual stream; shape (B, T, D)."""
        attended_BTD = self.attention(self.attention_norm(x_BTD), rotary, mask_TT)
        x_BTD = x_BTD + self._drop(attended_BTD)
        return x_BTD + self._drop(self.mlp(self.mlp_norm(x_BTD)))

    def _drop(self, x_BTD: Tensor) -> Tensor:
        if self.dropout == 0.0:
            return x_BTD
        return functional.dropout(x_BTD, self.dropout, self.training)
