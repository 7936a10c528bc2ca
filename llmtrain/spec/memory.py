"""What a run will need of one device's memory, before it starts: an estimate, part by part.

With P parameters, a forward pass of B rows of T tokens, width d, L layers, MLP width F, vocabulary
V, H heads, and s bytes per activation (4 in float32, 2 under bfloat16 autocast), in bytes:

- parameters 4 P and gradients 4 P: float32 always;
- optimizer 8 P for the two moments of Adam, AdamW and NAdam; Muon keeps one for the blocks'
  matrices: 4 P_matrices + 8 (P - P_matrices);
- copies 2 P_matmul under bfloat16: the weights that autocast casts and keeps for the backward pass;
- activations, what autograd keeps of a layer per token: both norms' inputs 2 * 4 d (RMSNorm, which
  torch makes of several steps on a CPU, twice that), the inputs of four matrices 3 d s + F s, the
  rotated q, k, v 3 d s, before that with qk_norm q, k, v 3 d s and q and k normed 2 * 4 d, the
  kernel's log-sums 4 H, and of the MLP F s before its activation (SwiGLU 3 F s); under
  checkpointing the layer's input 4 d, and one layer in full;
- logits 3 * 4 B T V, on the way back: the log-softmax, its gradient and theirs. With a chunked head
  4 V for each of at most 512 tokens, the gradient of the stream 4 B T d, and, after the first of
  several passes, that of the head 4 V d, which has to wait for its sum.

Left out: the allocator's waste, the context of CUDA (some hundred MB), and compiled kernels, which
keep less. The test holds it against what torch really saves.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmtrain.spec.config import ModelConfig
from llmtrain.spec.errors import PlanError
from llmtrain.spec.flops import param_groups
from llmtrain.spec.settings import HEAD_ROWS, TrainConfig

if TYPE_CHECKING:
    from llmtrain.spec.plan import PlanStage, RunPlan

FLOAT32 = 4
GB = 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """Bytes of one device at the widest moment of a step."""

    parameters: int
    gradients: int
    optimizer: int
    """Moments."""
    copies: int
    """Weights in the activations' type."""
    activations: int
    """Kept for the backward pass of one forward pass."""
    logits: int
    """What the loss has of them at once; of a chunked head, what it has in their place."""

    @property
    def total(self) -> int:
        """All parts together."""
        return (
            self.parameters
            + self.gradients
            + self.optimizer
            + self.copies
            + self.activations
            + self.logits
        )


def memory_bytes(config: TrainConfig, plan: "RunPlan") -> MemoryEstimate:
    """Return the bytes that a run needs of one device, whole on it (no shards).

    Under runtime.parallel=ddp or fsdp rows are shared, so that this is the most it can be.
    """
    model = config.model
    groups = param_groups(model, vocab_size=config.data.vocab_size, seq_len=config.seq_len.seq_len)
    size = FLOAT32 if config.runtime.dtype == "float32" else 2
    moments = 8 * groups.total
    if config.optimizer.name == "muon":
        moments -= 4 * groups.blocks
    pass_tokens = max(_pass_tokens(config, stage) for stage in plan.stages)
    copied = groups.blocks + (groups.head if config.runtime.loss_head == "full" else 0)
    return MemoryEstimate(
        parameters=FLOAT32 * groups.total,
        gradients=FLOAT32 * groups.total,
        optimizer=moments,
        copies=0 if size == FLOAT32 else size * copied,
        activations=pass_tokens * _kept_per_token(config, size),
        logits=_logits(config, plan, pass_tokens),
    )


def refuse_memory(config: TrainConfig, plan: "RunPlan") -> None:
    """Raise PlanError where a run is estimated to need more than runtime.memory_gb."""
    limit = config.runtime.memory_gb
    if limit is None:
        return
    needed = memory_bytes(config, plan).total
    if needed > limit * GB:
        raise PlanError(
            f"w{config.model.d_model}d{config.model.n_layers} needs about {needed / GB:.3g} GB "
            f"with {plan.batch_tokens} tokens per step, more than runtime.memory_gb={limit:g}; set "
            "runtime.micro_batch_tokens, runtime.activation_checkpointing=true or "
            "runtime.loss_head=chunked, or shrink the model"
        )


def _pass_tokens(config: TrainConfig, stage: "PlanStage") -> int:
    """Return the tokens of one forward pass: whole rows, as the trainer cuts them."""
    wanted = config.runtime.micro_batch_tokens or stage.step_tokens
    return min(stage.rows, max(1, wanted // stage.row_len)) * stage.row_len


def _logits(config: TrainConfig, plan: "RunPlan", pass_tokens: int) -> int:
    """Return the bytes of the loss head besides weights and their gradients."""
    vocab, width = config.data.vocab_size, config.model.d_model
    if config.runtime.loss_head == "full":
        return pass_tokens * vocab * 3 * FLOAT32
    several = any(_pass_tokens(config, stage) < stage.step_tokens for stage in plan.stages)
    waiting = vocab * width if several else 0
    return FLOAT32 * (min(pass_tokens, HEAD_ROWS) * vocab + pass_tokens * width + waiting)


def _kept_per_token(config: TrainConfig, size: int) -> int:
    layer = _kept_by_layer(config.model, size)
    stream = FLOAT32 * config.model.d_model
    if config.runtime.activation_checkpointing:
        return config.model.n_layers * stream + layer
    return config.model.n_layers * layer + 2 * stream


def _kept_by_layer(model: ModelConfig, size: int) -> int:
    """Return the bytes per token that autograd keeps of a block."""
    d, ff = model.d_model, model.d_ff
    norms = 2 * FLOAT32 * d * (2 if model.norm == "rmsnorm" else 1)
    attention = 5 * d * size + FLOAT32 * model.n_heads  # inputs of qkv and of out, q k v
    if model.qk_norm:
        attention += 3 * d * size + 2 * FLOAT32 * d
    before = 3 if model.activation == "swiglu" else 1
    return norms + attention + (d + (1 + before) * ff) * size
