"""Each rule against the values that its constants give, worked out apart from the code."""

import pytest

from llmtrain.spec.build import build
from llmtrain.spec.config import RecipeConfig
from llmtrain.spec.errors import ConfigError
from llmtrain.spec.recipe import Cell, hyperparameters, outside_range

NULL = {
    "peak_lr": None,
    "lr_multiplier": 1.0,
    "batch_tokens": None,
    "warmup_tokens": None,
    "beta1": None,
    "beta2": None,
    "weight_decay": None,
}


def recipe(name, **changes):
    return build(RecipeConfig, {"name": name} | NULL | changes)


def cell(n, tokens_per_param=20.0):
    tokens = n * tokens_per_param
    return Cell(
        d_model=64, n_layers=4, n_body=n, n_params=n, n_tokens=tokens, flops_m=6 * n * tokens
    )


# Learning rate and batch at D = 20N, as printed in surveys of these rules (two to three digits).
@pytest.mark.parametrize(
    ("name", "n", "lr", "batch"),
    [
        ("porian", 10**7, 0.0112, 63e3),
        ("porian", 10**9, 0.0021, 1.61e6),
        ("steplaw", 10**7, 0.0065, 32e3),
        ("steplaw", 10**8, 0.0025, 119e3),
        ("deepseek", 10**7, 0.0030, 53e3),
        ("deepseek", 10**9, 0.0010, 1.08e6),
        ("powerlines", 10**7, 0.016, 95e3),
        ("powerlines", 10**9, 0.016, 553e3),
    ],
)
def test_rule_gives_the_published_values(name, n, lr, batch):
    found = hyperparameters(recipe(name), cell(n))
    assert found.peak_lr == pytest.approx(lr, rel=0.05)  # printed to two digits
    assert found.batch_tokens == pytest.approx(batch, rel=0.03)


def test_powerlines_decay_keeps_the_timescale_of_the_paper():
    found = hyperparameters(recipe("powerlines"), cell(10**8), batch_tokens=2**18)
    tokens = 20 * 10**8
    timescale = found.batch_tokens / (found.peak_lr * found.weight_decay * tokens)
    assert timescale == pytest.approx(1.084 * 20**-0.527)


def test_a_number_in_the_config_overrides_the_rule_and_the_multiplier_scales_both():
    rule = hyperparameters(recipe("porian"), cell(10**7))
    given = hyperparameters(recipe("porian", peak_lr=0.5, lr_multiplier=2.0), cell(10**7))
    assert given.peak_lr == 1.0
    doubled = hyperparameters(recipe("porian", lr_multiplier=2.0), cell(10**7))
    assert doubled.peak_lr == pytest.approx(2 * rule.peak_lr)
    assert doubled.weight_decay == rule.weight_decay


def test_the_fixed_recipe_needs_every_number():
    with pytest.raises(ConfigError, match="recipe=fixed needs a number for recipe\\.peak_lr"):
        recipe("fixed")


def test_a_size_outside_the_fitted_range_is_said():
    assert outside_range("porian", 1e4) == "recipe porian was fitted on 5e+06 to 9.1e+08 parameters"
    assert outside_range("porian", 1e8) is None
    assert outside_range("fixed", 1e4) is None
