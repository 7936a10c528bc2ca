"""Budget, shape, stages and recipe -> the run that spends exactly the budget, or a refusal."""

import dataclasses
from dataclasses import dataclass

from llmtrain.spec.build import config_hash
from llmtrain.spec.config import FlopsConvention, SeqLenConfig
from llmtrain.spec.errors import PlanError
from llmtrain.spec.flops import CONVENTIONS, flops_per_token, param_groups
from llmtrain.spec.memory import refuse_memory
from llmtrain.spec.recipe import Hyperparameters, cell_of, hyperparameters
from llmtrain.spec.schedule import Stage, mean_cost, settled_stages, stages
from llmtrain.spec.settings import TrainConfig

GOOD_ERROR = 5e-4  # a batch this close to the budget is taken without looking further
BATCH_SLACK = 0.1  # rows may differ from the rule's by this fraction to meet the budget


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanStage:
    """Consecutive steps with one shape of input."""

    n_steps: int
    row_len: int
    """Tokens per row."""
    rows: int
    """Rows per step."""
    window: int | None
    """Causal attention window in tokens; None attends to the whole row."""
    step_flops: float
    """FLOPs of a step under the budget's convention."""

    @property
    def step_tokens(self) -> int:
        """Trained tokens per step."""
        return self.rows * self.row_len


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlan:
    """A run down to its last step."""

    stages: tuple[PlanStage, ...]
    n_steps: int
    n_tokens: int
    """Trained tokens."""
    consumed_tokens: int
    """Tokens read from the corpus; more than n_tokens only in truncate mode."""
    batch_tokens: int
    """Tokens per step at full length."""
    block_len: int
    """Length of the corpus blocks that rows are cut from: the full context."""
    params: dict[str, int]
    """Parameters by count."""
    flops: dict[FlopsConvention, float]
    """Training FLOPs by convention."""
    budget_error: float
    """(spent - asked) / asked, in FLOPs of the budget's convention, or tokens."""
    tokens_per_param: float
    """D / N with N counted as no_input_embedding."""
    epochs: float | None
    """Passes over the training split; None where its size is not known yet."""
    warmup_tokens: int
    hyper: Hyperparameters

    def shape_at(self, step: int) -> PlanStage:
        """Return the stage of step `step`, counted from 0."""
        for stage in self.stages:
            if step < stage.n_steps:
                return stage
            step -= stage.n_steps
        raise IndexError("step lies behind the end of the plan")

    def done_at(self, step: int) -> tuple[int, float]:
        """Return (tokens, FLOPs under the budget's convention) of the first `step` steps."""
        tokens, flops = 0, 0.0
        for stage in self.stages:
            n = min(step, stage.n_steps)
            tokens += n * stage.step_tokens
            flops += n * stage.step_flops
            step -= n
        return tokens, flops


def run_identity(config: TrainConfig) -> dict[str, object]:
    """Return the settings that decide a run's result, and none that do not."""
    full = dataclasses.asdict(config)
    keep = ("model", "optimizer", "schedule", "seq_len", "recipe", "seed")
    data = {k: v for k, v in full["data"].items() if k not in ("root", "max_epochs")}
    budget: dict[str, object] = {"convention": config.budget.convention}
    for key in ("flops", "n_tokens"):  # 76800 and 76800.0, as Python may give them, are one amount
        amount = full["budget"][key]
        budget[key] = None if amount is None else float(amount)
    if config.seq_len.warmup_tokens is None:  # a younger key: runs without it keep their names
        del full["seq_len"]["warmup_tokens"]
    return {
        **{key: full[key] for key in keep},
        "data": data,
        "budget": budget,
        "evaluation": {"n_tokens": full["evaluation"]["n_tokens"]},
        "dtype": full["runtime"]["dtype"],
    }


def run_id(config: TrainConfig) -> str:
    """Return the run's name: what a person looks for, then a hash of every deciding setting."""
    budget = config.budget
    kind, amount = ("D", budget.n_tokens) if budget.flops is None else ("C", budget.flops)
    mantissa, _, exponent = f"{amount:.2e}".partition("e")
    shape = f"w{config.model.d_model}d{config.model.n_layers}"
    digest = config_hash(run_identity(config))[:10]
    return f"{kind}{float(mantissa):g}e{int(exponent)}-{shape}-s{config.seed}-{digest}"


def plan_run(config: TrainConfig, *, vocab_size: int, unique_tokens: int | None) -> RunPlan:
    """Return the plan that meets the budget with the sequence-length stages solved.

    `unique_tokens`: tokens of the training split; None, before the data are prepared, leaves the
    epochs unknown and unchecked. Raises PlanError where the budget buys too few
    steps, cannot be met within budget.tolerance, reads the corpus too often, is all warmup, or
    would not fit in runtime.memory_gb.
    """
    model, seq = config.model, config.seq_len
    groups = param_groups(model, vocab_size=vocab_size, seq_len=seq.seq_len)
    rates = [_rates(config, stage, vocab_size) for stage in stages(seq)]
    target, costs = _target(config, rates)
    shape_stages = settled_stages(seq, costs, target)
    n_tokens = target / mean_cost(shape_stages, costs)
    cell = cell_of(
        d_model=model.d_model,
        n_layers=model.n_layers,
        params=groups.counts(),
        n_tokens=n_tokens,
        seq_len=seq.seq_len,
    )
    wanted = hyperparameters(config.recipe, cell).batch_tokens / seq.seq_len
    exact = config.recipe.batch_tokens is not None
    layout = _meet(seq, shape_stages, costs, target, n_tokens, _row_choices(wanted, exact))
    flops = [rate[config.budget.convention] for rate in rates]
    layout = [
        dataclasses.replace(stage, step_flops=stage.step_tokens * rate)
        for stage, rate in zip(layout, flops, strict=True)
    ]
    steps = [stage.n_steps for stage in layout]
    if steps[-1] < 1 or sum(steps) < config.budget.min_steps:
        raise PlanError(
            f"{_asked(config)} buys {sum(max(0, s) for s in steps)} steps of "
            f"{layout[-1].rows * seq.seq_len} tokens for this shape, fewer than "
            f"budget.min_steps={config.budget.min_steps}; raise the budget, shrink the model or "
            "lower recipe.batch_tokens"
        )
    tokens = [stage.n_steps * stage.step_tokens for stage in layout]
    spent = sum(t * cost for t, cost in zip(tokens, costs, strict=True))
    batch_tokens = layout[-1].rows * seq.seq_len
    hyper = hyperparameters(config.recipe, cell, batch_tokens=batch_tokens)
    consumed = sum(steps) * batch_tokens
    plan = RunPlan(
        stages=tuple(stage for stage in layout if stage.n_steps > 0),
        n_steps=sum(steps),
        n_tokens=sum(tokens),
        consumed_tokens=consumed,
        batch_tokens=batch_tokens,
        block_len=seq.seq_len,
        params=groups.counts(),
        flops={
            name: sum(t * rate[name] for t, rate in zip(tokens, rates, strict=True))
            for name in CONVENTIONS
        },
        budget_error=spent / target - 1.0,
        tokens_per_param=sum(tokens) / groups.counts()["no_input_embedding"],
        epochs=None if unique_tokens is None else consumed / unique_tokens,
        warmup_tokens=round(hyper.warmup_tokens),
        hyper=hyper,
    )
    _refuse(config, plan)
    refuse_memory(config, plan)
    return plan


def _rates(config: TrainConfig, stage: Stage, vocab_size: int) -> dict[FlopsConvention, float]:
    """Return FLOPs per token of a stage, by convention."""
    windowed = config.seq_len.mode == "window"
    return flops_per_token(
        config.model,
        vocab_size=vocab_size,
        seq_len=config.seq_len.seq_len,
        row_len=None if windowed else stage.length,
        window=stage.length if windowed else None,
    )


def _target(
    config: TrainConfig, rates: list[dict[FlopsConvention, float]]
) -> tuple[float, list[float]]:
    """Return what the budget asks for, and what a token of each stage costs of it."""
    if config.budget.flops is not None:
        return config.budget.flops, [rate[config.budget.convention] for rate in rates]
    return float(config.budget.n_tokens or 0.0), [1.0] * len(rates)


def _row_choices(wanted: float, exact: bool) -> list[int]:
    """Return rows per step to try, nearest to the rule's first."""
    nearest = max(1, round(wanted))
    if exact:
        return [nearest]
    low = max(1, int(wanted * (1 - BATCH_SLACK)))
    high = int(wanted * (1 + BATCH_SLACK)) + 1
    # More than a few dozen candidates cannot help: one in ten already lands within GOOD_ERROR.
    around = range(max(low, nearest - 20), min(high, nearest + 20) + 1)
    fitting = [rows for rows in around if abs(rows - wanted) <= BATCH_SLACK * wanted]
    return sorted({nearest, *fitting}, key=lambda rows: (abs(rows - wanted), rows))


def _meet(
    seq: SeqLenConfig,
    shape_stages: tuple[Stage, ...],
    costs: list[float],
    target: float,
    n_tokens: float,
    choices: list[int],
) -> list[PlanStage]:
    """Return the stages of the batch nearest to the rule's that meets the budget well."""
    best: tuple[float, list[PlanStage]] | None = None
    for rows in choices:
        layout = _layout(seq, shape_stages, costs, target, n_tokens, rows)
        pairs = zip(layout, costs, strict=True)
        spent = sum(stage.n_steps * stage.step_tokens * cost for stage, cost in pairs)
        error = abs(spent / target - 1.0)
        if best is None or error < best[0]:
            best = (error, layout)
        if error <= GOOD_ERROR:
            break
    assert best is not None
    return best[1]


def _layout(
    seq: SeqLenConfig,
    shape_stages: tuple[Stage, ...],
    costs: list[float],
    target: float,
    n_tokens: float,
    rows: int,
) -> list[PlanStage]:
    """Give each short stage its share of the tokens, and the last one what the budget has left."""
    layout: list[PlanStage] = []
    left, begin = target, 0.0
    for stage, cost in zip(shape_stages, costs, strict=True):
        last = stage is shape_stages[-1]
        row_len = seq.seq_len if seq.mode == "window" else stage.length
        step_rows = rows * seq.seq_len // row_len if seq.mode == "reshape" else rows
        step_tokens = step_rows * row_len
        share = left / cost if last else (stage.until - begin) * n_tokens
        n_steps = round(share / step_tokens)
        window = stage.length if seq.mode == "window" and stage.length < seq.seq_len else None
        layout.append(
            PlanStage(
                n_steps=n_steps, row_len=row_len, rows=step_rows, window=window, step_flops=0.0
            )
        )
        left -= n_steps * step_tokens * cost
        begin = stage.until
    return layout


def _asked(config: TrainConfig) -> str:
    if config.budget.flops is not None:
        return f"budget.flops={config.budget.flops:g}"
    return f"budget.n_tokens={config.budget.n_tokens:g}"


def _refuse(config: TrainConfig, plan: RunPlan) -> None:
    """Raise PlanError for a plan that would train, but not what was asked for."""
    if abs(plan.budget_error) > config.budget.tolerance:
        raise PlanError(
            f"{_asked(config)} is missed by {plan.budget_error:+.2%} with {plan.n_steps} steps of "
            f"{plan.batch_tokens} tokens, more than budget.tolerance={config.budget.tolerance:g}; "
            "lower recipe.batch_tokens or raise the budget"
        )
    if plan.warmup_tokens > plan.n_tokens / 2:
        raise PlanError(
            f"the warmup of {plan.warmup_tokens} tokens is more than half of the run's "
            f"{plan.n_tokens}; lower recipe.warmup_tokens or raise the budget"
        )
    if plan.epochs is not None and plan.epochs > config.data.max_epochs:
        raise PlanError(
            f"{_asked(config)} reads the training tokens {plan.epochs:.2f} times, "
            f"more than data.max_epochs={config.data.max_epochs:g}; take more text or a bigger "
            "model, or raise the cap"
        )
