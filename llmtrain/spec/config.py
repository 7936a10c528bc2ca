"""The configuration of a run as frozen fact sheets: a type and a unit on every field.

Nothing here has a default: every value stands in `configs/`, every type stands here, and a test
holds the two together. `__post_init__` refuses; it never changes a value.
"""

import math
from dataclasses import dataclass
from typing import Literal

from llmtrain.spec.check import check, check_between, check_positive

FlopsConvention = Literal[
    "non_embedding", "with_head", "causal_attention", "full_attention", "chinchilla", "total"
]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Architecture of a decoder-only transformer; vocabulary and context come from elsewhere."""

    d_model: int
    """Width of the residual stream."""
    n_layers: int
    """Number of transformer blocks."""
    d_head: int
    """Width of one attention head; n_heads = d_model / d_head."""
    ff_ratio: float
    """Hidden width of the MLP over d_model, before rounding up."""
    ff_multiple: int
    """The MLP's hidden width is rounded up to a multiple of this."""
    activation: Literal["gelu", "swiglu", "relu2"]
    """MLP non-linearity; swiglu has three matrices, the others two."""
    norm: Literal["rmsnorm", "layernorm"]
    """Pre-norm of each branch, and of the output."""
    position: Literal["rope", "learned"]
    """Rotary positions, or a learned table of seq_len rows."""
    rope_base: float
    """Base of the rotary frequencies."""
    qk_norm: bool
    """Normalise queries and keys per head."""
    tied_head: bool
    """The output head shares the embedding table."""
    bias: bool
    """Biases in linear layers and LayerNorm."""
    dropout: float
    """Dropout probability in the residual branches."""
    init_std: float
    """Standard deviation of the embedding; and of the matrices at base_d_model (see below)."""
    init: Literal["fan_in", "fixed"]
    """fan_in: std 1/sqrt(fan_in), projections into the residual stream start at zero; fixed:
    init_std everywhere, those projections over sqrt(2 n_layers) (GPT-2)."""
    parametrization: Literal["standard", "mup"]
    """How initialisation and learning rates follow the width."""
    base_d_model: int
    """Width at which muP equals the standard parametrisation."""

    def __post_init__(self) -> None:
        """Refuse impossible shapes."""
        for field in ("d_model", "n_layers", "d_head", "ff_multiple", "base_d_model"):
            check_positive(f"model.{field}", getattr(self, field))
        for field in ("ff_ratio", "rope_base", "init_std"):
            check_positive(f"model.{field}", getattr(self, field))
        check_between("model.dropout", self.dropout, 0.0, 0.9)
        check(
            self.d_model % self.d_head == 0,
            f"model.d_model={self.d_model} must be a multiple of model.d_head={self.d_head}",
        )
        check(
            self.position == "learned" or self.d_head % 2 == 0,
            f"model.d_head={self.d_head} must be even for rotary positions; use position=learned",
        )

    @property
    def n_heads(self) -> int:
        """Number of attention heads."""
        return self.d_model // self.d_head

    @property
    def d_ff(self) -> int:
        """Hidden width of the MLP."""
        # 1e-9: 8/3 * 96 is 256.00000000000006 in binary and must not round up to the next multiple.
        return self.ff_multiple * math.ceil(self.ff_ratio * self.d_model / self.ff_multiple - 1e-9)


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """The update rule; rates, betas and decay come from the recipe."""

    name: Literal["adamw", "adam", "nadam", "muon"]
    """muon: Muon on the blocks' matrices, AdamW on the rest."""
    eps: float
    """Added to the root of the second moment."""
    grad_clip: float | None
    """Largest global gradient norm; null does not clip."""
    z_loss: float
    """Weight of the squared log-partition of the logits in the training loss."""
    muon_momentum: float
    """Momentum of Muon."""
    muon_lr_scale: float
    """Muon's rate over the recipe's peak rate."""

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        check_positive("optimizer.eps", self.eps)
        check_positive("optimizer.muon_lr_scale", self.muon_lr_scale)
        check_between("optimizer.muon_momentum", self.muon_momentum, 0.0, 0.9999)
        check_between("optimizer.z_loss", self.z_loss, 0.0, 1.0)
        if self.grad_clip is not None:
            check_positive("optimizer.grad_clip", self.grad_clip)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """Shape of the learning rate on the run's own token clock, after warmup."""

    name: Literal["cosine", "linear", "constant", "inverse_sqrt", "wsd"]
    """wsd: warmup, stable, decay."""
    final_fraction: float
    """Last rate over the peak rate (cosine, linear, wsd)."""
    cooldown_fraction: float
    """wsd: share of the tokens in the decay."""
    cooldown_shape: Literal["sqrt", "linear"]
    """wsd: 1 - sqrt(progress), or a straight line."""

    def __post_init__(self) -> None:
        """Refuse fractions outside their range."""
        check_between("schedule.final_fraction", self.final_fraction, 0.0, 1.0)
        check_between("schedule.cooldown_fraction", self.cooldown_fraction, 0.01, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class SeqLenConfig:
    """Context length, and how it grows during training."""

    seq_len: int
    """Full context length in tokens; evaluation always uses it."""
    mode: Literal["reshape", "truncate", "window"]
    """What a short stage shortens: rows' shape, rows' content, or the attention window."""
    pacing: Literal["none", "linear", "root", "discrete"]
    """How the length grows over the warmup; none trains at full length throughout."""
    start: int
    """Length of the first stage in tokens."""
    warmup_fraction: float
    """Share of the run's tokens spent below the full length."""
    warmup_tokens: int | None
    """Tokens spent below the full length, in place of warmup_fraction; null follows that."""
    root: float
    """root pacing: exponent 1/root of the progress."""
    multiple_of: int
    """Every length is a multiple of this: 8 on a CPU, 64 on a GPU."""

    def __post_init__(self) -> None:
        """Refuse lengths that cannot be scheduled."""
        for field in ("seq_len", "start", "root", "multiple_of"):
            check_positive(f"seq_len.{field}", getattr(self, field))
        check_between("seq_len.warmup_fraction", self.warmup_fraction, 0.0, 0.9)
        if self.warmup_tokens is not None:
            check_positive("seq_len.warmup_tokens", self.warmup_tokens)
        check(
            self.seq_len % self.multiple_of == 0 and self.start % self.multiple_of == 0,
            f"seq_len.seq_len={self.seq_len} and seq_len.start={self.start} must be multiples of "
            f"seq_len.multiple_of={self.multiple_of}",
        )
        check(
            self.start <= self.seq_len,
            f"seq_len.start={self.start} must not exceed seq_len.seq_len={self.seq_len}",
        )


RecipeName = Literal["fixed", "porian", "steplaw", "deepseek", "powerlines", "demo"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeConfig:
    """The rule for a cell's hyperparameters; a number here overrides it, null follows it."""

    name: RecipeName
    """Rule; `fixed` needs every number below."""
    peak_lr: float | None
    """Learning rate after warmup."""
    lr_multiplier: float
    """Factor on the peak rate, for brackets around a rule."""
    batch_tokens: int | None
    """Tokens per optimizer step."""
    warmup_tokens: int | None
    """Tokens of linear learning-rate warmup."""
    beta1: float | None
    """First-moment decay."""
    beta2: float | None
    """Second-moment decay."""
    weight_decay: float | None
    """Decoupled weight decay of matrices (multiplied by the learning rate each step)."""

    def __post_init__(self) -> None:
        """Refuse numbers out of range, and a fixed recipe with holes."""
        check_positive("recipe.lr_multiplier", self.lr_multiplier)
        for field in ("peak_lr", "batch_tokens"):
            if getattr(self, field) is not None:
                check_positive(f"recipe.{field}", getattr(self, field))
        for field in ("beta1", "beta2"):
            if getattr(self, field) is not None:
                check_between(f"recipe.{field}", getattr(self, field), 0.0, 0.99999)
        for field in ("weight_decay", "warmup_tokens"):
            if getattr(self, field) is not None:
                value = getattr(self, field)
                check(
                    math.isfinite(value) and value >= 0,
                    f"recipe.{field}={value!r} must be a finite number, 0 or above",
                )
        if self.name == "fixed":
            holes = [
                f"recipe.{field}"
                for field in (
                    "peak_lr",
                    "batch_tokens",
                    "warmup_tokens",
                    "beta1",
                    "beta2",
                    "weight_decay",
                )
                if getattr(self, field) is None
            ]
            check(not holes, f"recipe=fixed needs a number for {', '.join(holes)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetConfig:
    """How much training a run gets."""

    flops: float | None
    """Training FLOPs under `convention`."""
    n_tokens: float | None
    """Training tokens, instead of flops."""
    convention: FlopsConvention
    """How FLOPs per token are counted (docs/flops.md)."""
    min_steps: int
    """Refuse plans with fewer optimizer steps."""
    tolerance: float
    """Refuse plans whose FLOPs or tokens miss the budget by more than this fraction."""

    def __post_init__(self) -> None:
        """Refuse anything but exactly one positive budget."""
        check(
            (self.flops is None) != (self.n_tokens is None),
            "budget: set exactly one of budget.flops and budget.n_tokens",
        )
        for field in ("flops", "n_tokens"):
            if getattr(self, field) is not None:
                check_positive(f"budget.{field}", getattr(self, field))
        check_positive("budget.min_steps", self.min_steps)
        check_between("budget.tolerance", self.tolerance, 1e-6, 0.1)
