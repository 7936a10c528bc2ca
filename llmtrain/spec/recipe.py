"""Named rules for the hyperparameters of a cell, each fed the cell's real width, depth, N, D and C.

A rule in N alone mistunes the arms of an IsoFLOP curve, because along one budget N and D move
opposite ways; every rule here therefore sees the whole cell, and the sweep can bracket its rate.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from llmtrain.spec.config import RecipeConfig, RecipeName
from llmtrain.spec.errors import PlanError


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """What a rule may look at."""

    d_model: int
    n_layers: int
    n_body: int
    """Parameters of the blocks' matrices (non_embedding)."""
    n_params: int
    """The same with the output head (no_input_embedding)."""
    n_tokens: float
    """Training tokens that the budget buys."""
    flops_m: float
    """DeepSeek's compute M * D, with M = 72 L d^2 + 12 L d T (no vocabulary)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hyperparameters:
    """What a rule decides."""

    peak_lr: float
    """Learning rate after warmup, before decay."""
    batch_tokens: float
    """Tokens per optimizer step, before rounding to whole rows."""
    warmup_tokens: float
    """Tokens of linear warmup."""
    beta1: float
    beta2: float
    weight_decay: float
    """Decoupled decay of matrices; each step multiplies them by 1 - lr * weight_decay."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A recipe: its batch size, then everything else at the batch size that was chosen."""

    batch_tokens: Callable[[Cell], float]
    rest: Callable[[Cell, float], Hyperparameters]
    valid_params: tuple[float, float]
    """Range of n_params on which the rule was fitted."""
    source: str


def hyperparameters(
    config: RecipeConfig, cell: Cell, *, batch_tokens: float | None = None
) -> Hyperparameters:
    """Return the hyperparameters of a cell, with the config's own numbers over the rule's.

    `batch_tokens` is the batch that will really be used; without it the rule's own is taken.
    """
    if batch_tokens is None:
        batch_tokens = config.batch_tokens
    if config.name == "fixed":
        chosen = _fixed(config, float(batch_tokens or 0))
    else:
        rule = RULES[config.name]
        batch = batch_tokens if batch_tokens is not None else rule.batch_tokens(cell)
        chosen = _override(config, rule.rest(cell, float(batch)))
    return replace(chosen, peak_lr=chosen.peak_lr * config.lr_multiplier)


def outside_range(name: RecipeName, n_params: float) -> str | None:
    """Return a sentence where a cell lies outside the sizes its rule was fitted on."""
    if name == "fixed":
        return None
    low, high = RULES[name].valid_params
    if low <= n_params <= high:
        return None
    return f"recipe {name} was fitted on {low:.3g} to {high:.3g} parameters"


def _fixed(config: RecipeConfig, batch_tokens: float) -> Hyperparameters:
    numbers = (
        config.peak_lr,
        config.warmup_tokens,
        config.beta1,
        config.beta2,
        config.weight_decay,
    )
    peak_lr, warmup, beta1, beta2, decay = (float(n) for n in numbers if n is not None)
    return Hyperparameters(
        peak_lr=peak_lr,
        batch_tokens=batch_tokens,
        warmup_tokens=warmup,
        beta1=beta1,
        beta2=beta2,
        weight_decay=decay,
    )


def _override(config: RecipeConfig, rule: Hyperparameters) -> Hyperparameters:
    fields = ("peak_lr", "warmup_tokens", "beta1", "beta2", "weight_decay")
    given = {f: float(getattr(config, f)) for f in fields if getattr(config, f) is not None}
    return replace(rule, **given)


def _porian(cell: Cell, batch_tokens: float) -> Hyperparameters:
    peak_lr = 3.7 * cell.n_params**-0.36
    return Hyperparameters(
        peak_lr=peak_lr,
        batch_tokens=batch_tokens,
        warmup_tokens=cell.n_params,
        beta1=0.9,
        beta2=0.99 if batch_tokens < 256 * 2048 else 0.95,
        weight_decay=1e-4 / peak_lr,  # theirs is independent of the rate
    )


# Step Law and DeepSeek warm up over 2,000 steps of runs that are far longer than that; a tenth of
# the run stands in where 2,000 steps would be more.
def _warmup_2000(cell: Cell, batch_tokens: float) -> float:
    return min(2000 * batch_tokens, 0.1 * cell.n_tokens)


def _steplaw(cell: Cell, batch_tokens: float) -> Hyperparameters:
    return Hyperparameters(
        peak_lr=1.79 * cell.n_body**-0.713 * cell.n_tokens**0.307,
        batch_tokens=batch_tokens,
        warmup_tokens=_warmup_2000(cell, batch_tokens),
        beta1=0.9,
        beta2=0.95,
        weight_decay=0.1,
    )


def _deepseek(cell: Cell, batch_tokens: float) -> Hyperparameters:
    return Hyperparameters(
        peak_lr=0.3118 * cell.flops_m**-0.1250,
        batch_tokens=batch_tokens,
        warmup_tokens=_warmup_2000(cell, batch_tokens),
        beta1=0.9,
        beta2=0.95,
        weight_decay=0.1,
    )


def _powerlines(cell: Cell, batch_tokens: float) -> Hyperparameters:
    # The rate is muP's base rate: use it with model.parametrization=mup, base_d_model=256.
    peak_lr = 0.016
    tau = 1.084 * (cell.n_tokens / cell.n_params) ** -0.527  # AdamW timescale over the run
    return Hyperparameters(
        peak_lr=peak_lr,
        batch_tokens=batch_tokens,
        warmup_tokens=0.1 * cell.n_tokens,
        beta1=0.9,
        beta2=0.95,
        weight_decay=batch_tokens / (peak_lr * cell.n_tokens * tau),
    )


def _demo(cell: Cell, batch_tokens: float) -> Hyperparameters:
    peak_lr = 0.0065 * (32 / cell.d_model) ** 0.9 * (cell.n_tokens / 1e6) ** -0.12
    return Hyperparameters(
        peak_lr=peak_lr,
        batch_tokens=batch_tokens,
        warmup_tokens=0.1 * cell.n_tokens,
        beta1=0.9,
        beta2=0.98,
        weight_decay=0.1,
    )


# Tests hold the rates and batches of the published rules against printed values. Their betas, decay
# and warmup, and Power Lines' base rate, are the papers' as recalled and have not been checked.
RULES: dict[RecipeName, Rule] = {
    "porian": Rule(
        batch_tokens=lambda cell: 0.00037 * cell.n_params**0.703 * 2048,
        rest=_porian,
        valid_params=(5e6, 9.1e8),
        source="Porian et al. 2024, arXiv 2406.19146, tuned hyperparameters",
    ),
    "steplaw": Rule(
        batch_tokens=lambda cell: 0.58 * cell.n_tokens**0.571,
        rest=_steplaw,
        valid_params=(6e7, 1.1e9),
        source="Li et al. 2025, arXiv 2503.04715 (Step Law)",
    ),
    "deepseek": Rule(
        batch_tokens=lambda cell: 0.2920 * cell.flops_m**0.3271,
        rest=_deepseek,
        valid_params=(1e6, 3e8),
        source="DeepSeek-AI 2024, arXiv 2401.02954, section 3.1, fitted on 1e17 to 2e19 FLOPs",
    ),
    "powerlines": Rule(
        batch_tokens=lambda cell: 0.0306 * cell.n_tokens**0.383 * 2048,
        rest=_powerlines,
        valid_params=(1.11e8, 3.3e9),
        source="Bergsma et al. 2025, arXiv 2505.13738 (Power Lines), on a muP base rate",
    ),
    "demo": Rule(
        batch_tokens=lambda cell: 512.0 * (cell.n_tokens / 1e6) ** 0.5,
        rest=_demo,
        valid_params=(3.5e3, 1e5),
        source="docs/experiments.md, measured on the demo's own sizes",
    ),
}


def cell_of(
    *, d_model: int, n_layers: int, params: dict[str, int], n_tokens: float, seq_len: int
) -> Cell:
    """Return the cell of a shape trained on `n_tokens`. Raises PlanError for a non-finite count."""
    if not (math.isfinite(n_tokens) and n_tokens > 0):
        raise PlanError(f"the budget buys {n_tokens!r} tokens; it must buy a positive number")
    per_token = 72 * n_layers * d_model**2 + 12 * n_layers * d_model * seq_len
    return Cell(
        d_model=d_model,
        n_layers=n_layers,
        n_body=params["non_embedding"],
        n_params=params["no_input_embedding"],
        n_tokens=n_tokens,
        flops_m=per_token * n_tokens,
    )
