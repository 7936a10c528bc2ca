import random
import statistics

import pytest

from llmtrain.spec.errors import PlanError
from llmtrain.spec.flops import flops_per_token
from llmtrain.spec.plan import plan_run, run_id
from llmtrain.spec.recipe import RULES

BY_RULE = {
    "recipe.peak_lr": None,
    "recipe.batch_tokens": None,
    "recipe.warmup_tokens": 0,
    "budget.n_tokens": None,
    "budget.min_steps": 100,
    "seq_len.seq_len": 128,
    "seq_len.start": 16,
    "evaluation.n_tokens": 1024,
}


def planned(config, unique_tokens=10**15):
    return plan_run(config, vocab_size=256, unique_tokens=unique_tokens)


def random_plans(make, count):
    """Return (config, plan) of random cells, and why others were refused."""
    rng = random.Random(0)
    plans, refused = [], []
    for _ in range(count):
        config = make(
            BY_RULE
            | {
                "model.d_model": rng.choice([16, 32, 48, 64, 96, 128, 256]),
                "model.n_layers": rng.choice([1, 2, 3, 4, 6]),
                "seq_len.mode": rng.choice(["reshape", "truncate", "window"]),
                "seq_len.pacing": rng.choice(["none", "linear", "root", "discrete"]),
                "recipe.name": rng.choice(list(RULES)),
                "budget.flops": 10 ** rng.uniform(11, 15),
                "budget.convention": rng.choice(["with_head", "full_attention", "chinchilla"]),
            }
        )
        try:
            plans.append((config, planned(config)))
        except PlanError as error:
            refused.append(str(error))
    return plans, refused


def test_a_thousand_random_cells_meet_their_budget(make):
    plans, refused = random_plans(make, 1000)
    errors = [abs(plan.budget_error) for _, plan in plans]
    assert len(plans) > 400
    assert any("steps of" in reason for reason in refused)  # small budgets buy too few
    assert not any("is missed by" in reason for reason in refused)  # rounding never costs a cell
    assert statistics.median(errors) <= 0.001
    assert max(errors) <= 0.005


def test_plan_flops_are_the_sum_over_its_stages(make):
    for config, plan in random_plans(make, 200)[0]:
        by_hand = 0.0
        for stage in plan.stages:
            rate = flops_per_token(
                config.model,
                vocab_size=256,
                seq_len=128,
                row_len=stage.row_len,
                window=stage.window,
            )[config.budget.convention]
            by_hand += stage.n_steps * stage.rows * stage.row_len * rate
        assert plan.flops[config.budget.convention] == pytest.approx(by_hand, rel=1e-12)
        assert plan.done_at(plan.n_steps) == (plan.n_tokens, pytest.approx(by_hand, rel=1e-12))
        assert plan.n_steps == sum(stage.n_steps for stage in plan.stages)


def test_batch_stays_within_a_tenth_of_the_rule(make):
    for config, plan in random_plans(make, 300)[0]:
        wanted = plan.hyper.batch_tokens
        nearest = 128 * max(1, round(wanted / 128))
        assert plan.batch_tokens == nearest or abs(plan.batch_tokens / wanted - 1) <= 0.1 + 1e-9
        assert config.recipe.batch_tokens is None


def test_a_batch_given_by_hand_is_never_changed(make):
    plan = planned(make({"budget.n_tokens": None, "budget.flops": 1e10}))
    assert plan.batch_tokens == 256


def test_tokens_per_step_stay_constant_in_reshape_and_grow_in_truncate(make):
    warm = BY_RULE | {"recipe.name": "demo", "budget.flops": 1e12, "seq_len.pacing": "linear"}
    reshape = planned(make(warm | {"seq_len.mode": "reshape"}))
    assert {stage.step_tokens for stage in reshape.stages} == {reshape.batch_tokens}
    assert [stage.row_len for stage in reshape.stages] == [16, 32, 64, 128]
    assert reshape.consumed_tokens == reshape.n_tokens
    truncate = planned(make(warm | {"seq_len.mode": "truncate"}))
    assert len({stage.rows for stage in truncate.stages}) == 1
    assert truncate.consumed_tokens > truncate.n_tokens
    window = planned(make(warm | {"seq_len.mode": "window"}))
    assert [stage.window for stage in window.stages] == [16, 32, 64, None]


def test_length_warmup_buys_more_tokens_at_the_same_flops(make):
    warm = BY_RULE | {"recipe.name": "demo", "budget.flops": 1e12}
    plain = planned(make(warm))
    grown = planned(make(warm | {"seq_len.pacing": "linear"}))
    full = "full_attention"
    assert grown.flops[full] == pytest.approx(plain.flops[full], rel=0.005)
    # s (1 - r): attention's share of the FLOPs times the mean shortening, recipes' formula.
    share = 1 - plain.flops["with_head"] / plain.flops[full]
    mean_ratio = sum(s.n_steps * s.row_len for s in grown.stages) / (128 * grown.n_steps)
    saved = 1 - plain.n_tokens / grown.n_tokens
    assert saved == pytest.approx(share * (1 - mean_ratio), rel=0.03)


def test_recipe_follows_tokens_at_a_fixed_shape(make):
    rates = []
    for flops in (1e13, 4e13):
        cell = BY_RULE | {"recipe.name": "steplaw", "budget.flops": flops}
        rates.append(planned(make(cell)).hyper.peak_lr)
    assert rates[1] / rates[0] == pytest.approx(4**0.307, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget.n_tokens": 256.0, "budget.min_steps": 100}, "fewer than budget.min_steps=100"),
        ({"budget.n_tokens": 1.0}, "buys 0 steps"),
        ({"budget.n_tokens": 5120 + 100}, "is missed by"),
        ({"recipe.warmup_tokens": 3000}, "more than half of the run"),
        ({"data.max_epochs": 1e-4}, r"reads the training tokens .*max_epochs=0.0001"),
    ],
)
def test_a_plan_that_cannot_be_met_is_refused_with_its_reason(make, changes, message):
    with pytest.raises(PlanError, match=message):
        planned(make(changes), unique_tokens=10**6)


def test_epochs_are_unknown_before_the_corpus_is(make):
    assert plan_run(make(), vocab_size=256, unique_tokens=None).epochs is None


def test_a_thousand_different_runs_have_different_names(make):
    names = {
        run_id(make({"seed": seed, "recipe.peak_lr": lr}))
        for seed in range(50)
        for lr in (0.01 * (1 + i / 1000) for i in range(20))
    }
    assert len(names) == 1000


def test_run_id_ignores_what_does_not_decide_the_result(make):
    same = (
        {"tracking.points": 7},
        {"runs_root": "elsewhere"},
        {"name": "other"},
        {"checkpoint.keep": 9},
        {"runtime.n_threads": 2},
        {"data.root": "elsewhere"},
    )
    assert {run_id(make(changes)) for changes in same} == {run_id(make())}
    other = ({"seed": 1}, {"model.qk_norm": True}, {"runtime.dtype": "bfloat16"})
    assert run_id(make()) not in {run_id(make(changes)) for changes in other}
