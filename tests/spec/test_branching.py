"""Trunks and branches: where they part, what a prefix is, and what is saved."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from llmtrain.scaling.design import trunk_and_branches
from llmtrain.spec.branching import (
    branch_step,
    pinned,
    prefix,
    prefix_id,
    share_trunk,
    spent_flops,
    trunk_id,
)
from llmtrain.spec.errors import ConfigError, PlanError
from llmtrain.spec.plan import plan_run, run_id
from llmtrain.spec.schedule import lr_factor_at

RULE = {
    "recipe.name": "demo",
    "recipe.peak_lr": None,
    "recipe.batch_tokens": None,
    "recipe.warmup_tokens": None,
    "recipe.beta1": None,
    "recipe.beta2": None,
    "recipe.weight_decay": None,
    "budget.n_tokens": None,
    "budget.tolerance": 0.01,
    "data.max_epochs": 1e6,
    "schedule.name": "wsd",
}
BUDGETS = (4e10, 9e10, 2e11)
WARMED = {"seq_len.pacing": "linear", "seq_len.warmup_fraction": 0.3}


def planned(config):
    return config, plan_run(config, vocab_size=256, unique_tokens=None)


def family(make, changes=None, budgets=BUDGETS):
    return [planned(make(RULE | {"budget.flops": c} | (changes or {}))) for c in budgets]


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_a_branch_leaves_before_the_first_step_below_the_peak(make, fraction):
    config, plan = planned(make({"schedule.name": "wsd", "schedule.cooldown_fraction": fraction}))
    factors = [
        lr_factor_at(
            (step + 0.5) * plan.batch_tokens,
            config.schedule,
            warmup_tokens=plan.warmup_tokens,
            n_tokens=plan.n_tokens,
        )
        for step in range(plan.n_steps)
    ]
    peak = [factor == 1.0 for factor in factors]
    assert branch_step(config, plan) == len(peak) - peak[::-1].index(True)


@pytest.mark.parametrize("changes", [{}, WARMED])
def test_runs_that_share_a_trunk_agree_in_every_step_of_their_prefix(make, changes):
    runs = family(make, changes)
    (trunk, *branches), refused = share_trunk(runs, unique_tokens=None)
    assert not refused
    assert [trunk[0].budget.flops, *(c.budget.flops for c, _ in branches)] == [2e11, 9e10, 4e10]
    assert trunk[0].checkpoint.branch_at == tuple(sorted(branch_step(*b) for b in branches))
    for config, plan in branches:
        assert config.checkpoint.branch_from == run_id(trunk[0]) == trunk_id(config)
        assert plan.batch_tokens == trunk[1].batch_tokens
        assert plan.hyper == trunk[1].hyper
        for step in range(branch_step(config, plan)):
            mine, theirs = plan.shape_at(step), trunk[1].shape_at(step)
            assert (mine.rows, mine.row_len, mine.window) == (
                theirs.rows,
                theirs.row_len,
                theirs.window,
            )
    assert trunk_id(trunk[0]) == run_id(trunk[0])
    assert len(trunk[1].stages) == (3 if changes else 1)


def test_a_trunks_recipe_is_the_rule_in_the_middle_and_its_warmups_are_the_shortest_runs(make):
    runs = family(make, WARMED | {"recipe.lr_multiplier": 2.0})
    tokens = [plan.n_tokens for _, plan in runs]
    middle = math.sqrt(tokens[0] * tokens[2])
    configs = pinned(runs)
    assert len({config.recipe for config in configs}) == 1
    recipe = configs[0].recipe
    # The recipe `demo`, by hand; the model is 32 wide.
    assert recipe.peak_lr == pytest.approx(0.0065 * (middle / 1e6) ** -0.12)
    assert recipe.batch_tokens == pytest.approx(512 * (middle / 1e6) ** 0.5, abs=16)
    assert recipe.warmup_tokens == pytest.approx(0.1 * tokens[0], abs=1)
    assert configs[0].seq_len.warmup_tokens == pytest.approx(0.3 * tokens[0], abs=1)
    (trunk, *_), _ = share_trunk(runs, unique_tokens=None)
    assert trunk[1].hyper.peak_lr == pytest.approx(2 * recipe.peak_lr)


@pytest.mark.parametrize("cooldown", [0.1, 0.2])
def test_what_is_spent_is_the_longest_run_and_the_other_cooldowns(make, cooldown):
    runs = family(make, {"schedule.cooldown_fraction": cooldown})
    shared, _ = share_trunk(runs, unique_tokens=None)
    spent = [spent_flops(*run) for run in shared]
    # By hand, and by the closed form of the design of experiments.
    assert sum(spent) == pytest.approx(BUDGETS[2] + cooldown * sum(BUDGETS[:2]), rel=0.01)
    tokens = sorted(plan.n_tokens for _, plan in shared)
    per_token = shared[0][1].stages[0].step_flops / shared[0][1].batch_tokens
    closed = trunk_and_branches(np.array(tokens, dtype=float), per_token, cooldown)
    # Whole steps: each branch may leave half a step off the exact edge.
    assert sum(spent) == pytest.approx(float(closed.sum()), rel=0.005)
    assert spent[0] == pytest.approx(BUDGETS[2], rel=0.005)


def test_runs_whose_length_warmup_follows_their_own_tokens_are_refused_with_the_reason(
    make, monkeypatch
):
    # As if nothing were pinned: what a user's own configurations may look like.
    monkeypatch.setattr(
        "llmtrain.spec.branching.pinned", lambda runs: [config for config, _ in runs]
    )
    fixed = WARMED | {
        "recipe.name": "fixed",
        "recipe.peak_lr": 0.01,
        "recipe.batch_tokens": 256,
        "recipe.warmup_tokens": 512,
        "recipe.beta1": 0.9,
        "recipe.beta2": 0.95,
        "recipe.weight_decay": 0.1,
    }
    shared, refused = share_trunk(family(make, fixed), unique_tokens=None)
    assert len(shared) == 1
    assert shared[0][0].checkpoint.branch_at == ()
    assert [config.budget.flops for config, _ in refused] == [9e10, 4e10]
    assert all("in sequence lengths: " in str(error) for _, error in refused)
    _, refused = share_trunk(family(make), unique_tokens=None)
    assert all("differ from those of" in str(error) for _, error in refused)


def test_a_prefix_is_named_by_all_that_decides_it_and_nothing_else(make):
    base = {"schedule.name": "wsd", "budget.n_tokens": 10_240}
    config, plan = planned(make(base))
    name = prefix_id(config, plan, 8, "data")
    same = (
        {"budget.n_tokens": 20_480},
        {"schedule.cooldown_shape": "linear"},
        {"schedule.cooldown_fraction": 0.1},
        {"evaluation.n_tokens": 1024},
        {"checkpoint.every_steps": 3},
    )
    other = (
        {"seed": 1},
        {"recipe.peak_lr": 0.02},
        {"recipe.lr_multiplier": 0.5},
        {"recipe.warmup_tokens": 256},
        {"recipe.weight_decay": 0.2},
        {"model.dropout": 0.1},
        {"optimizer.z_loss": 1e-4},
        {"runtime.dtype": "bfloat16"},
        {"schedule.final_fraction": 0.0},
        WARMED | {"budget.tolerance": 0.1},
    )
    for change in same:
        assert prefix_id(*planned(make(base | change)), 8, "data") == name, change
    names = [prefix_id(*planned(make(base | change)), 8, "data") for change in other]
    names += [prefix_id(config, plan, 9, "data"), prefix_id(config, plan, 8, "other")]
    assert len({name, *names}) == 1 + len(other) + 2
    assert prefix(config, plan, 8)["sequence lengths"] == [[8, 8, 32, None]]


def test_length_warmup_in_tokens_is_as_long_in_every_run(make):
    short = []
    for budget in BUDGETS:
        changes = WARMED | {"seq_len.warmup_tokens": 30_000, "budget.flops": budget}
        config, plan = planned(make(RULE | changes | {"recipe.batch_tokens": 256}))
        assert plan.budget_error == pytest.approx(0, abs=0.01)
        short.append([(s.n_steps, s.rows, s.row_len) for s in plan.stages[:-1]])
    assert all(a == b for a, b in itertools.pairwise(short))
    assert sum(n for n, _, _ in short[0]) * 256 == pytest.approx(30_000, abs=256)
    with pytest.raises(PlanError, match=r"seq_len.warmup_tokens=30000000 is more than 0.9"):
        planned(
            dataclasses.replace(
                config, seq_len=dataclasses.replace(config.seq_len, warmup_tokens=30_000_000)
            )
        )


def test_no_younger_key_renames_a_run_that_does_without_it(make):
    assert run_id(make()) == "D5.12e3-w32d2-s0-f64491ddab"
    assert run_id(make({"seq_len.warmup_tokens": 512})) != run_id(make())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule.name": "cosine", "checkpoint.branch_at": [3]}, "use schedule=wsd"),
        ({"schedule.cooldown_fraction": 0.01, "checkpoint.branch_from": "x"}, "0.05 to 0.5"),
        ({"checkpoint.branch_at": [3], "checkpoint.branch_from": "x"}, "not both"),
        ({"checkpoint.branch_from": "../x"}, "must match"),
        ({"checkpoint.branch_at": [0]}, "above 0"),
    ],
)
def test_what_cannot_branch_is_refused(make, changes, message):
    with pytest.raises(ConfigError, match=message):
        make({"schedule.name": "wsd"} | changes)
