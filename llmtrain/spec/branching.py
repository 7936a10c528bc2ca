"""Runs of one shape and seed as a trunk at a constant rate and branches that cool down from it.

A wsd run is a function of its prefix until its cooldown begins. Runs of one shape that agree in
rate, batch, warmups, seed and data therefore share that prefix bit for bit: the longest one, the
trunk, keeps its state at the steps where the others part, and each of these, a branch, starts
there (Hägele et al. 2024, arXiv 2405.18392).
"""

import bisect
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmtrain.spec.build import config_hash
from llmtrain.spec.config import RecipeConfig
from llmtrain.spec.errors import PlanError
from llmtrain.spec.flops import param_groups
from llmtrain.spec.plan import RunPlan, plan_run, run_id, run_identity
from llmtrain.spec.recipe import cell_of, hyperparameters
from llmtrain.spec.schedule import cooldown_start
from llmtrain.spec.settings import TrainConfig

Planned = tuple[TrainConfig, RunPlan]

FOLDER = "branches"
FORMAT = 2
"""Raised when a training step or the content of a checkpoint changes: older ones are refused."""


def branch_step(config: TrainConfig, plan: RunPlan) -> int:
    """Return the number of steps before a wsd run's cooldown. Raises PlanError where it has none.

    The rate of a step is the schedule's at the middle of its tokens.
    """

    def middle(step: int) -> float:
        return plan.done_at(step)[0] + plan.shape_at(step).step_tokens / 2

    start = cooldown_start(config.schedule, plan.n_tokens)
    if config.schedule.name != "wsd" or plan.warmup_tokens >= start:
        raise PlanError(
            f"schedule.name={config.schedule.name} with recipe.warmup_tokens={plan.warmup_tokens} "
            f"has no constant rate within {plan.n_tokens} tokens; use schedule=wsd, less warmup"
        )
    return bisect.bisect_right(range(plan.n_steps), start, key=middle)


def prefix(config: TrainConfig, plan: RunPlan, step: int) -> dict[str, Any]:
    """Return everything that decides the state after the first `step` steps, but for the text.

    Only for steps before the cooldown.
    """
    identity = run_identity(config)
    shapes, left = [], step
    for stage in plan.stages:
        n_steps = min(left, stage.n_steps)
        left -= n_steps
        if n_steps > 0:
            shapes.append([n_steps, stage.rows, stage.row_len, stage.window])
    return {
        "format": FORMAT,
        "step": step,
        **{key: identity[key] for key in ("model", "optimizer", "data", "seed", "dtype")},
        "schedule": [config.schedule.name, config.schedule.final_fraction, plan.warmup_tokens],
        "recipe": dataclasses.asdict(plan.hyper),
        "batch_tokens": plan.batch_tokens,
        "block_len": plan.block_len,
        "sequence lengths": shapes,
    }


def prefix_id(config: TrainConfig, plan: RunPlan, step: int, data_id: str) -> str:
    """Return the hash that a checkpoint of the trunk and a branch starting there must agree in."""
    return config_hash({"prefix": prefix(config, plan, step), "data_id": data_id})


def branch_checkpoint(config: TrainConfig, plan: RunPlan) -> Path:
    """Return where the trunk of a branch keeps the state that the branch starts from."""
    assert config.checkpoint.branch_from is not None
    trunk = Path(config.runs_root) / config.name / config.checkpoint.branch_from
    return trunk / FOLDER / f"step-{branch_step(config, plan):09d}"


def trunk_id(config: TrainConfig) -> str | None:
    """Return the run id of the trunk that a run is, or belongs to; None for a run of its own."""
    if config.checkpoint.branch_at:
        return run_id(config)
    return config.checkpoint.branch_from


def spent_flops(config: TrainConfig, plan: RunPlan) -> float:
    """Return the FLOPs that a run executes itself, under the budget's convention.

    Those of a branch are its cooldown; the prefix is its trunk's.
    """
    from_step = 0 if config.checkpoint.branch_from is None else branch_step(config, plan)
    return plan.done_at(plan.n_steps)[1] - plan.done_at(from_step)[1]


def share_trunk(
    runs: Sequence[Planned], *, unique_tokens: int | None
) -> tuple[list[Planned], list[tuple[TrainConfig, PlanError]]]:
    """Turn planned runs of one shape and seed into a trunk, first, and its branches.

    A recipe may not follow each run's own tokens here, else no two runs would agree: `pinned` says
    what stands in. Returns the runs planned anew, longest first, and those that cannot be planned
    or do not share the trunk's prefix, each with its reason.
    """
    if len(runs) < 2:
        return list(runs), []
    found: list[Planned] = []
    refused: list[tuple[TrainConfig, PlanError]] = []
    for config in pinned(runs):
        vocab_size = config.data.vocab_size
        try:
            plan = plan_run(config, vocab_size=vocab_size, unique_tokens=unique_tokens)
            branch_step(config, plan)
            found.append((config, plan))
        except PlanError as error:
            refused.append((config, error))
    found.sort(key=lambda run: run[1].n_tokens, reverse=True)
    branches: list[Planned] = []
    for run in found[1:]:
        reason = _disagreement(found[0], run)
        if reason is None:
            branches.append(run)
        else:
            refused.append((run[0], PlanError(reason)))
    if branches:
        steps = {branch_step(*branch) for branch in branches}
        trunk = run_id(found[0][0])
        found = [
            _with_checkpoint(found[0], branch_at=tuple(sorted(steps))),
            *(_with_checkpoint(branch, branch_from=trunk) for branch in branches),
        ]
    return found[: 1 + len(branches)], refused


def pinned(runs: Sequence[Planned]) -> list[TrainConfig]:
    """Return the runs with one recipe and one length warmup for all of them, as plain numbers.

    Rate, batch, betas and decay are the rule's at the geometric middle of the fewest and the most
    tokens; both warmups are those of the shortest run, since all runs have to get past them.
    """
    first = runs[0][0]
    tokens = sorted(plan.n_tokens for _, plan in runs)
    seq = first.seq_len
    recipe = first.recipe
    if recipe.name != "fixed":
        warmup = _recipe_at(first, tokens[0]).warmup_tokens
        recipe = _recipe_at(first, math.sqrt(tokens[0] * tokens[-1]))
        recipe = dataclasses.replace(recipe, warmup_tokens=warmup)
    if seq.pacing != "none" and seq.warmup_tokens is None and seq.warmup_fraction > 0:
        seq = dataclasses.replace(seq, warmup_tokens=round(seq.warmup_fraction * tokens[0]))
    return [dataclasses.replace(config, recipe=recipe, seq_len=seq) for config, _ in runs]


def _recipe_at(config: TrainConfig, n_tokens: float) -> RecipeConfig:
    """Return the recipe with every number of its rule, for this shape at `n_tokens`, filled in."""
    model, seq_len = config.model, config.seq_len.seq_len
    groups = param_groups(model, vocab_size=config.data.vocab_size, seq_len=seq_len)
    cell = cell_of(
        d_model=model.d_model,
        n_layers=model.n_layers,
        params=groups.counts(),
        n_tokens=n_tokens,
        seq_len=seq_len,
    )
    rule = dataclasses.replace(config.recipe, lr_multiplier=1.0)  # the multiplier stays a factor
    batch = max(1, round(hyperparameters(rule, cell).batch_tokens / seq_len)) * seq_len
    chosen = hyperparameters(rule, cell, batch_tokens=batch)
    return dataclasses.replace(
        config.recipe,
        peak_lr=chosen.peak_lr,
        batch_tokens=batch,
        warmup_tokens=round(chosen.warmup_tokens),
        beta1=chosen.beta1,
        beta2=chosen.beta2,
        weight_decay=chosen.weight_decay,
    )


def _disagreement(trunk: Planned, branch: Planned) -> str | None:
    """Return why a run cannot start from the trunk, or None."""
    step = branch_step(*branch)
    ours, theirs = prefix(*branch, step), prefix(*trunk, step)
    for key, value in ours.items():
        if value != theirs[key]:
            return (
                f"its first {step} steps differ from those of {run_id(trunk[0])} in {key}: "
                f"{value} and {theirs[key]}; give that as a number, or use sweep.branching=false"
            )
    return None


def _with_checkpoint(run: Planned, **changes: Any) -> Planned:
    config, plan = run
    checkpoint = dataclasses.replace(config.checkpoint, **changes)
    return dataclasses.replace(config, checkpoint=checkpoint), plan
