"""Learning rate and sequence length as data plus pure functions of progress in tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmtrain.spec.config import ScheduleConfig, SeqLenConfig
from llmtrain.spec.errors import ConfigError, PlanError

MAX_STAGES = 6  # each length is compiled once; more would fall back to eager (docs/decisions.md)


def lr_factor_at(
    tokens: float, schedule: ScheduleConfig, *, warmup_tokens: float, n_tokens: float
) -> float:
    """Return the learning rate over its peak after `tokens` of `n_tokens` training tokens.

    Linear warmup from 0, then the named shape; the shape ends exactly at `n_tokens`.
    inverse_sqrt is sqrt(warmup / tokens), so it needs a warmup above 0.
    """
    if tokens < warmup_tokens:
        return tokens / warmup_tokens
    if schedule.name == "inverse_sqrt":
        return math.sqrt(warmup_tokens / max(tokens, 1.0)) if warmup_tokens > 0 else 1.0
    if schedule.name == "constant":
        return 1.0
    span = n_tokens - warmup_tokens
    progress = min(1.0, (tokens - warmup_tokens) / span) if span > 0 else 1.0
    if schedule.name == "cosine":
        decay = 0.5 * (1.0 + math.cos(math.pi * progress))
    elif schedule.name == "linear":
        decay = 1.0 - progress
    else:
        decay = _cooldown(tokens, schedule, n_tokens)
    return schedule.final_fraction + (1.0 - schedule.final_fraction) * decay


def _cooldown(tokens: float, schedule: ScheduleConfig, n_tokens: float) -> float:
    start = cooldown_start(schedule, n_tokens)
    if tokens <= start:
        return 1.0
    progress = min(1.0, (tokens - start) / (n_tokens - start))
    return 1.0 - (math.sqrt(progress) if schedule.cooldown_shape == "sqrt" else progress)


def cooldown_start(schedule: ScheduleConfig, n_tokens: float) -> float:
    """Return the tokens after which a wsd run of `n_tokens` cools down."""
    return n_tokens * (1.0 - schedule.cooldown_fraction)


def is_annealed(schedule: ScheduleConfig) -> bool:
    """Return whether the schedule comes down by the end of the run."""
    return schedule.name in ("cosine", "linear", "wsd")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A stretch of training at one length."""

    until: float
    """Fraction of the run's tokens at which the stage ends; the last one ends at 1."""
    length: int
    """Row length (reshape, truncate) or attention window (window) in tokens."""


def stages(config: SeqLenConfig) -> tuple[Stage, ...]:
    """Return the stages of the sequence-length warmup, shortest first; the last is the full length.

    Lengths double from `start`; the pacing places the edges: `linear` and `root` reach the length
    l after ((l - start) / (seq_len - start))^root of the warmup (root = 1 for linear; Li et al.
    2021, arXiv 2108.06084), `discrete` gives each length the same share.
    Raises ConfigError where the lengths do not divide the full length or are too many.
    """
    no_warmup = config.warmup_fraction == 0 and config.warmup_tokens is None
    if config.pacing == "none" or config.start == config.seq_len or no_warmup:
        return (Stage(until=1.0, length=config.seq_len),)
    lengths = [config.start]
    while lengths[-1] * 2 <= config.seq_len:
        lengths.append(lengths[-1] * 2)
    if lengths[-1] != config.seq_len:
        raise ConfigError(
            f"seq_len.start={config.start} doubled does not reach seq_len.seq_len="
            f"{config.seq_len}; choose a start that is seq_len over a power of two"
        )
    if len(lengths) > MAX_STAGES:
        raise ConfigError(
            f"seq_len.start={config.start} makes {len(lengths)} stages, at most {MAX_STAGES}; "
            f"start at {config.seq_len >> (MAX_STAGES - 1)} or above"
        )
    edges = [_reached(config, lengths, i) * config.warmup_fraction for i in range(1, len(lengths))]
    return tuple(
        Stage(until=until, length=length)
        for until, length in zip([*edges, 1.0], lengths, strict=True)
    )


def settled_stages(
    config: SeqLenConfig, costs: Sequence[float], target: float
) -> tuple[Stage, ...]:
    """Return the stages of a run that spends `target`, at `costs` per token of each stage.

    `warmup_tokens`, where given, becomes the fraction of the run's tokens that it is. Raises
    PlanError where it is more than nine tenths of them.
    """
    if config.warmup_tokens is None or len(costs) == 1:
        return stages(config)
    half = stages(replace(config, warmup_fraction=0.5))
    saved = 2.0 * (costs[-1] - mean_cost(half, costs))  # per token of the warmup
    n_tokens = (target + config.warmup_tokens * saved) / costs[-1]
    if config.warmup_tokens > 0.9 * n_tokens:
        raise PlanError(
            f"seq_len.warmup_tokens={config.warmup_tokens} is more than 0.9 of the run's "
            f"{n_tokens:.0f} tokens; lower it or raise the budget"
        )
    return stages(replace(config, warmup_fraction=config.warmup_tokens / n_tokens))


def mean_cost(shape_stages: Sequence[Stage], costs: Sequence[float]) -> float:
    """Return the cost of a token, averaged over the stages."""
    begin, total = 0.0, 0.0
    for stage, cost in zip(shape_stages, costs, strict=True):
        total += (stage.until - begin) * cost
        begin = stage.until
    return total


def _reached(config: SeqLenConfig, lengths: list[int], index: int) -> float:
    """Return the fraction of the warmup after which lengths[index] is used."""
    if config.pacing == "discrete":
        return index / (len(lengths) - 1)
    root = config.root if config.pacing == "root" else 1.0
    share = (lengths[index] - config.start) / (config.seq_len - config.start)
    return float(share**root)
