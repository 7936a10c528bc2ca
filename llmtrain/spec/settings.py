"""How a run is carried out and watched, and the whole configuration of a run and of a sweep."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from llmtrain.spec.bill import BillConfig
from llmtrain.spec.build import build
from llmtrain.spec.check import check, check_between, check_folder, check_name, check_positive
from llmtrain.spec.config import (
    BudgetConfig,
    ModelConfig,
    OptimizerConfig,
    RecipeConfig,
    ScheduleConfig,
    SeqLenConfig,
)
from llmtrain.spec.data import DataConfig
from llmtrain.spec.sweeps import LaunchConfig, SweepConfig

HEAD_ROWS = 512
"""Tokens whose logits a chunked loss head has at once; on a CPU more are hardly faster."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """What the validation loss is measured on."""

    n_tokens: int
    """Validation tokens of an evaluation, at full length, spread over the split."""
    points: int
    """Evaluations during training, spread over its tokens; the last step always has one."""
    sample_tokens: int
    """Length of the text sample written at the end; 0 writes none."""

    def __post_init__(self) -> None:
        """Refuse an evaluation of nothing."""
        check_positive("evaluation.n_tokens", self.n_tokens)
        check_between("evaluation.points", self.points, 1, 10_000)
        check_between("evaluation.sample_tokens", self.sample_tokens, 0, 100_000)


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeConfig:
    """The machine's side of a run; none of it is meant to change a result."""

    device: Literal["auto", "cpu", "cuda"]
    """auto: a GPU where there is one."""
    dtype: Literal["float32", "bfloat16"]
    """bfloat16: autocast, with float32 master weights. float32: on a GPU its matrix products round
    their inputs to TF32, 10 bits of mantissa."""
    compile: bool
    """torch.compile of each block."""
    n_threads: int
    """CPU threads of one run; the count changes the last bits of a result."""
    micro_batch_tokens: int | None
    """Tokens of one forward pass; null takes the whole batch."""
    activation_checkpointing: bool
    """Recompute activations in the backward pass: less memory, more time."""
    attention: Literal["auto", "flash", "cudnn", "efficient", "math"]
    """The kernel that torch's attention tries before the others; math: plain products and no other;
    auto: torch's own order."""
    loss_head: Literal["full", "chunked"]
    """chunked: training's loss from the logits of 512 tokens at a time, in float32 under bfloat16
    too, with its gradients in the same pass: less memory, and on a CPU less time, where the
    vocabulary is large. Wants torch 2.13."""
    peak_tflops: float | None
    """Peak of one device for MFU, in TFLOP/s; null looks it up, or leaves MFU out."""
    parallel: Literal["none", "ddp", "fsdp"]
    """One run over the processes that torchrun starts: replicas (ddp) or shards (fsdp)."""
    cuda_graph: Literal["auto", "on", "off"]
    """Replay each step as one CUDA graph; auto: wherever that can be done."""
    stack: int
    """At most so many cells of a sweep that differ in seed or rate alone are trained as one."""
    memory_gb: float | None
    """Memory of one device in GB (1e9 bytes): refuse runs estimated to need more; null: unknown."""
    hang_s: float | None
    """Seconds without a finished step, evaluation or save after which a single run leaves with its
    stacks; null: never. Longer than any compilation. A sweep has hydra.launcher.hang_seconds."""

    def __post_init__(self) -> None:
        """Refuse counts below one, and a loss head that a stack of models cannot share."""
        check_between("runtime.n_threads", self.n_threads, 1, 4096)
        check_between("runtime.stack", self.stack, 1, 256)
        check(
            self.stack == 1 or self.loss_head == "full",
            f"runtime.stack={self.stack} does not go with runtime.loss_head={self.loss_head}, "
            "which knows one model's weights; use runtime.stack=1 or runtime.loss_head=full",
        )
        for field in ("micro_batch_tokens", "peak_tflops", "memory_gb", "hang_s"):
            if getattr(self, field) is not None:
                check_positive(f"runtime.{field}", getattr(self, field))


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """When the state of a run is saved."""

    every_s: float
    """Seconds between saves; a run shorter than this saves none on the way."""
    every_steps: int | None
    """Steps between saves, besides every_s; null leaves it to the clock."""
    keep: int
    """Newest checkpoints that are kept."""
    background: bool
    """Write beside the steps that follow, which wait for a copy of the state in memory alone.
    false: they wait until it is on the disk, as a run over several devices always does."""
    branch_at: tuple[int, ...]
    """Steps whose state is kept for branches, besides; a sweep with branching sets it."""
    branch_from: str | None
    """Run id, in the same family, of the trunk this run starts from; null trains all of it."""

    def __post_init__(self) -> None:
        """Refuse to keep nothing, and a branch of a branch."""
        check(
            not self.branch_at or self.branch_from is None,
            "checkpoint: a run is a trunk (branch_at) or a branch (branch_from), not both",
        )
        for step in self.branch_at:
            check_positive("checkpoint.branch_at", step)
        if self.branch_from is not None:
            check_name("checkpoint.branch_from", self.branch_from)
        check_positive("checkpoint.every_s", self.every_s)
        check_between("checkpoint.keep", self.keep, 1, 1000)
        if self.every_steps is not None:
            check_positive("checkpoint.every_steps", self.every_steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardConfig:
    """What a run does when its numbers go wrong; a run that ends well is the same under each."""

    on_nonfinite: Literal["stop", "skip", "rollback"]
    """A loss or gradient that is NaN or infinite never reaches the weights. stop: the run has
    diverged; skip: go on without that update; rollback: train again from the newest checkpoint,
    and without that update where it fails again."""
    max_skips: int
    """Updates of a run that may fail so before it counts as diverged."""
    on_spike: Literal["note", "stop"]
    """A loss far above the ones before it (training/spikes.py). note: counted in rows and record;
    stop: the run has diverged."""

    def __post_init__(self) -> None:
        """Refuse a negative allowance."""
        check_between("guard.max_skips", self.max_skips, 0, 1_000_000)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """Where the metrics go, besides metrics.jsonl."""

    wandb: Literal["auto", "online", "offline", "disabled"]
    """auto: as WANDB_MODE says, else online where a key is (WANDB_API_KEY or `wandb login`)."""
    project: str
    """wandb project."""
    entity: str | None
    """wandb user or team; null takes the account's default."""
    points: int
    """Rows of training metrics per run, spread over its steps."""
    progress: bool
    """Show a progress line."""

    def __post_init__(self) -> None:
        """Refuse names that wandb would not take."""
        check_name("tracking.project", self.project)
        if self.entity is not None:
            check_name("tracking.entity", self.entity)
        check_between("tracking.points", self.points, 1, 100_000)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Everything one run is made of."""

    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    seq_len: SeqLenConfig
    recipe: RecipeConfig
    budget: BudgetConfig
    evaluation: EvaluationConfig
    runtime: RuntimeConfig
    checkpoint: CheckpointConfig
    guard: GuardConfig
    tracking: TrackingConfig
    bill: BillConfig
    seed: int
    """Seed of the weights and of the order of the data."""
    name: str
    """The family this run belongs to: the folder under runs_root and the wandb group."""
    runs_root: str
    """Folder that holds all runs."""

    def __post_init__(self) -> None:
        """Refuse names that leave the run root, and parts that do not fit each other."""
        check_name("name", self.name)
        check_folder("runs_root", self.runs_root)
        check_between("seed", self.seed, 0, 2**31 - 1)
        check(
            self.evaluation.n_tokens >= 2 * self.seq_len.seq_len,
            f"evaluation.n_tokens={self.evaluation.n_tokens} must hold two rows of "
            f"seq_len.seq_len={self.seq_len.seq_len}: one row has no standard error",
        )
        check(
            self.optimizer.z_loss == 0 or self.runtime.loss_head == "full",
            f"optimizer.z_loss={self.optimizer.z_loss:g} does not go with runtime.loss_head="
            f"{self.runtime.loss_head}, which has no log-partition; use runtime.loss_head=full",
        )
        reason = refused_by_graph(self)
        check(
            self.runtime.cuda_graph != "on" or reason is None,
            f"runtime.cuda_graph=on does not go with {reason}; use runtime.cuda_graph=off",
        )
        if self.checkpoint.branch_at or self.checkpoint.branch_from is not None:
            check_branching("checkpoint.branch_at or branch_from", self.schedule)


def refused_by_graph(config: TrainConfig) -> str | None:
    """Return the setting for which a step cannot be captured as a CUDA graph, or None."""
    if config.runtime.device == "cpu":
        return "runtime.device=cpu"
    if config.runtime.parallel != "none":
        return f"runtime.parallel={config.runtime.parallel}"
    if config.runtime.loss_head != "full":  # never captured on a GPU so far
        return f"runtime.loss_head={config.runtime.loss_head}"
    if config.model.dropout > 0:  # its seed is set anew on the host for every step
        return f"model.dropout={config.model.dropout:g}"
    if config.optimizer.name not in ("adamw", "adam"):  # their rate is a number of the host's
        return f"optimizer.name={config.optimizer.name}"
    return None


def check_branching(field: str, schedule: ScheduleConfig) -> None:
    """Refuse a schedule without a constant rate, or whose cooldown is within the reported tail."""
    check(
        schedule.name == "wsd" and 0.05 <= schedule.cooldown_fraction <= 0.5,
        f"{field}: schedule.name={schedule.name} with schedule.cooldown_fraction="
        f"{schedule.cooldown_fraction:g} has no trunk to share; use schedule=wsd with 0.05 to 0.5",
    )


def build_launch(raw: Mapping[str, object]) -> LaunchConfig:
    """Return the part of a composed configuration that is about this call. Raises ConfigError."""
    mine = {field.name: raw[field.name] for field in fields(LaunchConfig) if field.name in raw}
    only = mine.get("only")
    if only is not None and not isinstance(only, list | tuple):
        only = [only]
    return build(LaunchConfig, mine | {"only": [str(item) for item in only or ()]})


def build_run(raw: Mapping[str, object]) -> tuple[TrainConfig, SweepConfig | None]:
    """Turn a composed configuration into the run's and, where it has one, the sweep's.

    Raises ConfigError with the dotted path of whatever does not fit.
    """
    launch = {field.name for field in fields(LaunchConfig)}
    rest = {key: value for key, value in raw.items() if key not in launch}
    sweep = rest.pop("sweep", None)
    config = build(TrainConfig, rest)
    family = None if sweep is None else build(SweepConfig, sweep, "sweep")
    if family is not None and family.branching:
        check_branching("sweep.branching", config.schedule)
    return config, family
