"""How a run is carried out and watched, and the whole configuration of a run and of a sweep."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from llmtrain.spec.bill import BillConfig
from llmtrain.spec.build import build
from llmtrain.spec.check import check, check_between, check_folder, check_name, check_positive
from llmtrain.spec.config import (
    BudgetConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RecipeConfig,
    ScheduleConfig,
    SeqLenConfig,
)
from llmtrain.spec.modes import AdaptiveConfig, BracketConfig


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
    """bfloat16: autocast, with float32 master weights."""
    compile: bool
    """torch.compile of each block."""
    n_threads: int
    """CPU threads of one run; the count changes the last bits of a result."""
    micro_batch_tokens: int | None
    """Tokens of one forward pass; null takes the whole batch."""
    activation_checkpointing: bool
    """Recompute activations in the backward pass: less memory, more time."""
    peak_tflops: float | None
    """Peak of one device for MFU, in TFLOP/s; null looks it up, or leaves MFU out."""
    parallel: Literal["none", "ddp", "fsdp"]
    """One run over the processes that torchrun starts: replicas (ddp) or shards (fsdp)."""
    memory_gb: float | None
    """Memory of one device in GB (1e9 bytes): refuse runs estimated to need more; null: unknown."""

    def __post_init__(self) -> None:
        """Refuse counts below one."""
        check_between("runtime.n_threads", self.n_threads, 1, 4096)
        for field in ("micro_batch_tokens", "peak_tflops", "memory_gb"):
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
class TrackingConfig:
    """Where the metrics go, besides metrics.jsonl."""

    wandb: Literal["auto", "online", "offline", "disabled"]
    """auto: online where a key is in the environment, else offline."""
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
class SweepConfig:
    """An IsoFLOP family: which sizes are trained at which budgets."""

    name: str
    """Name of the family: the folder under runs_root and the wandb group."""
    budgets: tuple[float, ...]
    """Training FLOPs of each IsoFLOP curve, under budget.convention."""
    widths: tuple[int, ...]
    """d_model of the shapes to choose from."""
    depths: tuple[int, ...]
    """n_layers of the shapes to choose from; every width meets every depth."""
    n_heads: int | None
    """Attention heads of every shape; null keeps model.d_head and lets their number grow."""
    aspect_min: float
    """Leave out shapes whose d_model / n_layers is smaller."""
    aspect_max: float
    """Leave out shapes whose d_model / n_layers is larger."""
    sizes_per_budget: int
    """Cells of one curve, spread evenly in log N."""
    span: float
    """The curve reaches from the expected optimum / span to the expected optimum * span."""
    optimum_flops: float
    """Budget at which the expected optimum is known."""
    optimum_params: float
    """Expected optimal N there (no_input_embedding count)."""
    optimum_exponent: float
    """a of N_opt = optimum_params * (C / optimum_flops)^a."""
    seeds: tuple[int, ...]
    """Every cell is trained once for each seed."""
    mode: Literal["fixed", "adaptive", "lr_bracket"]
    """The grid; or cells added round by round; or the grid with some cells at several rates."""
    law: str | None
    """Printed law or law.json that gives the expected optimum; null: the three optimum_ keys."""
    lr_min: float | None
    """Refuse cells whose peak rate is smaller; null does not ask."""
    lr_max: float | None
    """Refuse cells whose peak rate is larger; null does not ask."""
    adaptive: AdaptiveConfig
    """mode=adaptive."""
    bracket: BracketConfig
    """mode=lr_bracket."""
    branching: bool
    """Cells of one shape and seed share a constant-rate trunk and cool down from it at each budget;
    needs schedule=wsd."""

    def __post_init__(self) -> None:
        """Refuse empty, repeated or impossible lists."""
        check_name("sweep.name", self.name)
        for field in ("budgets", "widths", "depths", "seeds"):
            values = getattr(self, field)
            check(len(values) > 0, f"sweep.{field} is empty: name at least one")
            check(
                len(set(values)) == len(values), f"sweep.{field}={list(values)} names a value twice"
            )
        for field in ("budgets", "widths", "depths"):
            for value in getattr(self, field):
                check_positive(f"sweep.{field}", value)
        if self.n_heads is not None:
            check_positive("sweep.n_heads", self.n_heads)
        for field in ("aspect_min", "aspect_max", "optimum_flops", "optimum_params"):
            check_positive(f"sweep.{field}", getattr(self, field))
        check(
            math.isfinite(self.span) and self.span > 1, f"sweep.span={self.span!r} must be above 1"
        )
        check_between("sweep.optimum_exponent", self.optimum_exponent, 0.0, 1.0)
        check_between("sweep.sizes_per_budget", self.sizes_per_budget, 1, 1000)
        for field in ("lr_min", "lr_max"):
            if getattr(self, field) is not None:
                check_positive(f"sweep.{field}", getattr(self, field))
        check(
            self.lr_min is None or self.lr_max is None or self.lr_min < self.lr_max,
            f"sweep.lr_min={self.lr_min!r} must be below sweep.lr_max={self.lr_max!r}",
        )
        check(self.law != "", "sweep.law is empty: name a printed law or a law.json, or null")
        self._check_mode()

    def _check_mode(self) -> None:
        """Refuse a mode whose own settings do not fit the sweep's."""
        check(
            not self.branching or self.mode == "fixed",
            f"sweep.branching shares one rate among cells known beforehand; sweep.mode={self.mode} "
            "does not have them: use sweep.mode=fixed",
        )
        if self.mode == "adaptive":
            check(
                len(self.budgets) >= 3,
                f"sweep.mode=adaptive fits an exponent: sweep.budgets={list(self.budgets)} must "
                "name at least 3",
            )
            opening = self.adaptive.first_sizes * sum(self.budgets)
            cap = self.adaptive.max_flops
            check(
                cap is None or cap >= opening,
                f"sweep.adaptive.max_flops={cap!r} is less than first_sizes cells at every budget "
                f"cost, {opening:.4g}; raise it, or leave out the largest budget",
            )
            target = self.adaptive.forecast_flops
            check(
                target is None or target >= max(self.budgets),
                f"sweep.adaptive.forecast_flops={target!r} must not be below the largest budget",
            )
        if self.mode == "lr_bracket":
            strange = [value for value in self.bracket.budgets if value not in self.budgets]
            check(not strange, f"sweep.bracket.budgets={strange} must be among sweep.budgets")
            check(
                self.sizes_per_budget >= 3,
                f"sweep.sizes_per_budget={self.sizes_per_budget} must be 3 or more for a bracket "
                "at the optimum and on both arms",
            )


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
        if self.checkpoint.branch_at or self.checkpoint.branch_from is not None:
            check_branching("checkpoint.branch_at or branch_from", self.schedule)


def check_branching(field: str, schedule: ScheduleConfig) -> None:
    """Refuse a schedule without a constant rate, or whose cooldown is within the reported tail."""
    check(
        schedule.name == "wsd" and 0.05 <= schedule.cooldown_fraction <= 0.5,
        f"{field}: schedule.name={schedule.name} with schedule.cooldown_fraction="
        f"{schedule.cooldown_fraction:g} has no trunk to share; use schedule=wsd with 0.05 to 0.5",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchConfig:
    """Which cells of a sweep this call is about; no part of any run."""

    only: tuple[str, ...]
    """Run ids, globs over them, regular expressions (re:...), or budgets; empty takes all cells."""
    retry: Literal["none", "failed"]
    """failed: cells in quarantine are tried again too."""
    dry_run: bool
    """Print what would be trained and write nothing."""


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
