"""The parts of the transformer: linear layers, norms, rotary positions, attention, MLP, block.

Letters on tensors: B batch, T time, N = B T tokens, D width, H heads, K head width, F MLP width,
R replicas. The residual stream is (N, D): to layers of small models, a matrix costs less than rows.

Every parameter may have a leading axis of R replicas (stacked.py): then the batch holds R equal
parts in the same order, and each part meets its own replica's weights.
"""

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from llmtrain.spec.config import ModelConfig
from llmtrain.training import mup

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


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
    each = (slice(None), *(None,) * (x.ndim + 1 - gain.ndim))
    y = x.unflatten(0, (len(gain), -1)) * gain[each]
    if bias is not None:
        y = y + bias[each]
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


def rotary_table(seq_len: int, d_head: int, base: float) -> Tensor:
    """Return the rotary turns of queries, keys and values, float32 (seq_len, 3, 1, d_head/2, 2).

    The last axis is a number's real and imaginary part, as features 2i and 2i + 1 of a query are:
    position t turns them by the angle t base^(-2i / d_head). Values stay as they are: times one.
    Source: Su et al. 2021 (arXiv 2104.09864), section 3.2.2.
    """
    frequency = base ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
    angle_TK = torch.outer(torch.arange(seq_len, dtype=torch.float64), frequency)
    turn_TK = torch.polar(torch.ones_like(angle_TK), angle_TK)
    turn_T3K = torch.stack([turn_TK, turn_TK, torch.ones_like(turn_TK)], dim=1)
    return torch.view_as_real(turn_T3K).unsqueeze(2).float()


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the pairs of the last axis of x, (B, T, 3, H, K), by a rotary table's first T rows.

    On a CPU as complex numbers: one kernel forward and one back, where a small model's step is
    little but kernels. Those have no bfloat16 and are not compiled, so elsewhere in real ones.
    """
    pairs = x.float().unflatten(-1, (-1, 2))
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        turned = torch.view_as_complex(pairs) * torch.view_as_complex(turns)
        return torch.view_as_real(turned).flatten(-2)
    cos, sin = turns.unbind(-1)
    real, imaginary = pairs.unbind(-1)
    turned = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)
    return turned.flatten(-2)


def window_mask(n_tokens: int, window: int, device: torch.device) -> Tensor:
    """Return the (T, T) bool mask in which a token sees itself and the window - 1 before it."""
    position_T = torch.arange(n_tokens, device=device)
    distance_TT = position_T[:, None] - position_T[None, :]
    return (distance_TT >= 0) & (distance_TT < window)


@contextlib.contextmanager
def kernels(first: str) -> Iterator[None]:
    """Let torch's attention try a kernel before the others; auto: as it likes.

    Math takes everything, but on a CPU only alone.
    """
    if first == "auto":
        yield
        return
    order = [KERNELS[first]] if first == "math" else [KERNELS[first], *KERNELS.values()]
    with sdpa_kernel(order, set_priority=True):
        yield


class Attention(nn.Module):
    """Causal multi-head attention through torch's fused kernel."""

    def __init__(self, config: ModelConfig, kernel: str) -> None:
        super().__init__()
        self.kernel = kernel  # asked for in `forward`, so that compiled code is another for each
        self.n_heads, self.d_head = config.n_heads, config.d_head
        self.scale = mup.attention_scale(config)
        self.qkv = Linear(config.d_model, 3 * config.d_model, bias=config.bias)
        self.out = Linear(config.d_model, config.d_model, bias=config.bias, residual=True)
        self.qk_gain = nn.Parameter(torch.ones(2, 1, config.d_head)) if config.qk_norm else None

    def forward(
        self, x_ND: Tensor, n_tokens: int, rotary: Tensor | None, mask_TT: Tensor | None
    ) -> Tensor:
        """Attend within rows of T tokens, under the mask or to all earlier ones; shape (N, D)."""
        qkv = self.qkv(x_ND).view(-1, n_tokens, 3, self.n_heads, self.d_head)
        dtype = qkv.dtype
        if self.qk_gain is not None:
            qk, v = qkv.split((2, 1), dim=2)
            qk = functional.rms_norm(qk, (self.d_head,), eps=1e-6)
            stacked = self.qk_gain.ndim == 4
            qk = scaled(qk, self.qk_gain) if stacked else qk * self.qk_gain
            qkv = torch.cat([qk, v], dim=2)
        if rotary is not None:
            qkv = rotate(qkv, rotary)
        # Gains and turns are float32; under autocast the kernel wants the narrow dtype.
        q_BTHK, k_BTHK, v_BTHK = qkv.to(dtype).unbind(2)
        with kernels(self.kernel):
            y_BHTK = functional.scaled_dot_product_attention(
                q_BTHK.transpose(1, 2),
                k_BTHK.transpose(1, 2),
                v_BTHK.transpose(1, 2),
                attn_mask=mask_TT,
                is_causal=mask_TT is None,
                scale=self.scale,
            )
        attended: Tensor = self.out(y_BHTK.transpose(1, 2).reshape(x_ND.shape))
        return attended


class MLP(nn.Module):
    """The position-wise branch: GELU (tanh form, as GPT-2), squared ReLU, or SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        n_up = 2 if config.activation == "swiglu" else 1
        self.up = Linear(config.d_model, n_up * config.d_ff, bias=config.bias)
        self.down = Linear(config.d_ff, config.d_model, bias=config.bias, residual=True)

    def forward(self, x_ND: Tensor) -> Tensor:
        """Map every token by itself; shape (N, D)."""
        h_NF: Tensor = self.up(x_ND)
        if self.activation == "gelu":
            h_NF = functional.gelu(h_NF, approximate="tanh")
        elif self.activation == "relu2":
            h_NF = functional.relu(h_NF).square()
        else:
            gate_NF, value_NF = h_NF.chunk(2, dim=-1)
            h_NF = functional.silu(gate_NF) * value_NF
        mapped: Tensor = self.down(h_NF)
        return mapped


class Block(nn.Module):
    """One layer: attention, then the MLP, each on a normed copy and added to the stream."""

    def __init__(self, config: ModelConfig, kernel: str) -> None:
        super().__init__()
        self.attention_norm = build_norm(config)
        self.attention = Attention(config, kernel)
        self.mlp_norm = build_norm(config)
        self.mlp = MLP(config)
        self.dropout = config.dropout

    def forward(
        self, x_ND: Tensor, n_tokens: int, rotary: Tensor | None, mask_TT: Tensor | None
    ) -> Tensor:
        """Add both branches to the residual stream, in rows of T = n_tokens; shape (N, D)."""
        attended_ND = self.attention(self.attention_norm(x_ND), n_tokens, rotary, mask_TT)
        x_ND = x_ND + self._drop(attended_ND)
        return x_ND + self._drop(self.mlp(self.mlp_norm(x_ND)))

    def _drop(self, x_ND: Tensor) -> Tensor:
        if self.dropout == 0.0:
            return x_ND
        return functional.dropout(x_ND, self.dropout, self.training)
