"""Parameters and training FLOPs of a shape under every named convention: the only formula here.

docs/flops.md derives each line; tests hold it against torch's own FLOP counter.
"""

from dataclasses import dataclass
from typing import Literal

from llmtrain.spec.config import FlopsConvention, ModelConfig

CONVENTIONS: tuple[FlopsConvention, ...] = (
    "non_embedding",
    "with_head",
    "causal_attention",
    "full_attention",
    "chinchilla",
    "total",
)

ParamCount = Literal["non_embedding", "no_input_embedding", "total"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ParamGroups:
    """Parameters of a model by what they do in a matmul count."""

    blocks: int
    """Weights of the blocks' matrices: Kaplan's N (12 * n_layers * d_model^2 for d_ff = 4 d)."""
    head: int
    """Weights of the output matrix, d_model * vocab_size, tied or not."""
    input_embedding: int
    """Embedding rows that are looked up; 0 where the table is tied and counted as the head."""
    positions: int
    """Learned position table."""
    vectors: int
    """Gains of norms, and biases."""

    @property
    def total(self) -> int:
        """Every trainable parameter; a tied table once."""
        return self.blocks + self.head + self.input_embedding + self.positions + self.vectors

    def counts(self) -> dict[str, int]:
        """Return N under each count that the field uses."""
        return {
            "non_embedding": self.blocks,
            "no_input_embedding": self.blocks + self.head,
            "total": self.total,
        }


def param_groups(model: ModelConfig, *, vocab_size: int, seq_len: int) -> ParamGroups:
    """Count the parameters of a shape without building it."""
    d, layers, ff = model.d_model, model.n_layers, model.d_ff
    mlp_matrices = 3 if model.activation == "swiglu" else 2
    gain = d if model.norm == "rmsnorm" else d * (2 if model.bias else 1)
    per_block = 2 * gain + (2 * model.d_head if model.qk_norm else 0)
    if model.bias:
        per_block += 3 * d + d + (mlp_matrices - 1) * ff + d
    return ParamGroups(
        blocks=layers * (4 * d * d + mlp_matrices * d * ff),
        head=vocab_size * d,
        input_embedding=0 if model.tied_head else vocab_size * d,
        positions=seq_len * d if model.position == "learned" else 0,
        vectors=layers * per_block + gain,
    )


def mean_keys(seq_len: int, window: int | None) -> tuple[float, float]:
    """Return keys per query, (full square, causal), for rows of `seq_len` and a causal window.

    Causal without a window is seq_len / 2, the convention of 6 * L * T * d; a window of m leaves
    m - m^2 / (2 * seq_len).
    """
    m = seq_len if window is None else min(window, seq_len)
    return float(m), m - m * m / (2.0 * seq_len)


def flops_per_token(
    model: ModelConfig,
    *,
    vocab_size: int,
    seq_len: int,
    row_len: int | None = None,
    window: int | None = None,
) -> dict[FlopsConvention, float]:
    """Return training FLOPs per token (forward and backward) under every convention.

    `seq_len` is the model's full context; `row_len` the length of the rows, where shorter;
    `window` the causal attention window, where there is one.

    A multiply-add is 2, the backward pass twice the forward pass, so 6 per matmul weight and
    12 * d_model per layer and key for attention. Lookups, norms and recomputation are free,
    except in `chinchilla` (Hoffmann et al. 2022, appendix F: embedding and softmax counted).
    """
    groups = param_groups(model, vocab_size=vocab_size, seq_len=seq_len)
    d, layers = model.d_model, model.n_layers
    full, causal = mean_keys(row_len or seq_len, window)
    matmul = 6.0 * (groups.blocks + groups.head)
    appendix_f = (
        2 * vocab_size * d  # embedding, as a matmul with one-hot rows
        + 2 * groups.blocks  # queries, keys, values, output projection, MLP
        + layers * (2 * full * d + 3 * model.n_heads * full + 2 * full * d)  # logits, softmax, sum
        + 2 * d * vocab_size  # final logits
    )
    return {
        "non_embedding": 6.0 * groups.blocks,
        "with_head": matmul,
        "causal_attention": matmul + 12.0 * layers * d * causal,
        "full_attention": matmul + 12.0 * layers * d * full,
        "chinchilla": 3.0 * appendix_f,
        "total": 6.0 * groups.total,
    }
