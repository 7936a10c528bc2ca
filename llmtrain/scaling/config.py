"""Configuration of the two analysis scripts; every key of the YAML is a field here."""

from dataclasses import dataclass
from typing import Literal

from llmtrain.spec.bill import BillChanges
from llmtrain.spec.check import check, check_between, check_name, check_positive

ParamsConvention = Literal["auto", "non_embedding", "no_input_embedding", "total"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AnalyzeConfig:
    """What scripts/analyze.py reads and how it fits."""

    runs: str
    """Folder of a sweep, or a CSV file with params, tokens and loss."""
    out: str | None
    """Folder for the report; null: runs/NAME/report, or runs/analysis/STEM for a CSV."""
    columns: dict[str, str] | None
    """CSV: field -> column that holds it; null: the header's names are the fields'."""
    params_convention: str | None
    """CSV: what its params column counts; null: what its column of this name says."""
    flops_convention: str | None
    """CSV: what its flops column counts; null: what its column of this name says."""
    group: str | None
    """Analyse this group of the table only; null takes each in turn."""
    budgets: tuple[float, ...]
    """FLOP budgets that a table's rows snap to; empty: found in the data."""
    budget_tolerance: float
    """Rows within this relative distance of a budget belong to it."""
    params: ParamsConvention
    """Parameter count of the fits, where several are known; auto: no_input_embedding of records,
    the params column of a CSV."""
    bootstrap: int
    """Draws behind every interval."""
    unit: Literal["auto", "residual", "run", "model", "budget"]
    """What a draw renews: the residuals on the grid that was run, or whole runs, sizes, budgets.
    auto: residuals, but runs for a surface whose residuals differ in size over the grid."""
    noise: float | None
    """Standard deviation of a loss between seeds, nats per token, behind the intervals of Akima and
    local windows; null: from repeated seeds, else from what neighbours on a curve show."""
    seed: int
    """Seed of the draws."""
    delta: float
    """Corner of Approach 3's Huber loss, in ln L."""
    tie: bool
    """Fit the surfaces with alpha = beta."""
    floor: float | None
    """Fit the surfaces with this irreducible loss E; null: E is fitted."""
    interaction: bool
    """Also fit a term in N and D together, and Farseer's form, and say whether the runs ask for
    them."""
    starts: Literal["centred", "hoffmann"]
    """Starting points of the surface fits: on the data's scale, or the paper's 4500."""
    target_flops: float | None
    """Budget the report predicts for; null: ten times the largest."""
    against: str | None
    """law.json of another sweep: how much less compute this one needs for the same loss."""
    publish: Literal["auto", "online", "offline", "disabled"]
    """Log the analysis to wandb, in the runs' group; auto: online with a key, else offline."""
    project: str
    """wandb project of the analysis; runs=wandb:... publishes where it read."""
    entity: str | None
    """wandb user or team; null takes the account's default."""
    bill: BillChanges
    """How energy, carbon and money are counted; null: as the runs' own configuration says."""

    def __post_init__(self) -> None:
        """Refuse what no fit can use."""
        check_name("project", self.project)
        check(self.runs != "", "runs is empty: name a sweep's folder or a CSV file")
        for budget in self.budgets:
            check_positive("budgets", budget)
        check_between("budget_tolerance", self.budget_tolerance, 1e-6, 1.0)
        check_between("bootstrap", self.bootstrap, 20, 1_000_000)
        check_between("seed", self.seed, 0, 2**31 - 1)
        if self.noise is not None:
            check_positive("noise", self.noise)
        check_positive("delta", self.delta)
        if self.floor is not None:
            check_positive("floor", self.floor)
        check(
            not (self.interaction and (self.tie or self.floor is not None)),
            "interaction=true tests the law with all five constants free; leave tie and floor out",
        )
        if self.target_flops is not None:
            check_positive("target_flops", self.target_flops)


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictConfig:
    """What scripts/predict.py is asked."""

    law: str
    """A published law's name, or a law.json."""
    fit: str | None
    """Which fit of a law.json; null: the one its report recommends."""
    group: str | None
    """Which group of a law.json; null: the only one."""
    flops: float | None
    """Training budget in FLOPs."""
    params: float | None
    """Model size: what budget makes it optimal."""
    tokens: float | None
    """Token count: what budget makes it optimal; with params: what the pair costs and wastes."""
    gpu_hours: float | None
    """Training budget in device hours, with mfu and peak_tflops."""
    mfu: float
    """Share of the peak that training reaches."""
    peak_tflops: float
    """Peak of one device in TFLOP/s."""
    loss: float | None
    """Target loss: the least budget that reaches it."""
    inference_tokens: float | None
    """Tokens the model will serve over its life; lowers training plus inference FLOPs."""
    unique_tokens: float | None
    """Distinct training tokens that exist; more means repetition."""
    table: Literal["models", "laws"] | None
    """models: what well-known budgets would have bought; laws: the printed laws."""

    def __post_init__(self) -> None:
        """Refuse questions without an answer."""
        for field in (
            "flops",
            "params",
            "tokens",
            "gpu_hours",
            "loss",
            "inference_tokens",
            "unique_tokens",
            "peak_tflops",
        ):
            if getattr(self, field) is not None:
                check_positive(field, getattr(self, field))
        check(0 < self.mfu <= 1, f"mfu={self.mfu!r} must lie in (0, 1]")
        asked = [name for name in ("flops", "gpu_hours", "loss") if getattr(self, name) is not None]
        check(len(asked) <= 1, f"set one of {', '.join(asked)}, not several")
        check(
            not asked or (self.params is None and self.tokens is None),
            f"{'/'.join(asked)} fixes the budget; leave out params and tokens, or ask about those",
        )
        check(
            bool(asked) or self.params is not None or self.tokens is not None or bool(self.table),
            "nothing asked: set flops, gpu_hours, params, tokens, loss, table=models or table=laws",
        )
