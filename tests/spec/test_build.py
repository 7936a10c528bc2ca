import math

import pytest

from llmtrain.spec.build import build, config_hash
from llmtrain.spec.config import BudgetConfig, ModelConfig
from llmtrain.spec.errors import ConfigError
from llmtrain.spec.settings import build_run


def test_unknown_key_is_named_with_its_path_and_nearest_key(raw):
    raw["model"]["d_modle"] = 32
    with pytest.raises(ConfigError, match=r"^model\.d_modle: unknown key; did you mean d_model\?$"):
        build_run(raw)


def test_missing_key_is_named_with_its_path(raw):
    del raw["model"]["n_layers"]
    with pytest.raises(ConfigError, match=r"^model\.n_layers: missing key$"):
        build_run(raw)


@pytest.mark.parametrize(
    ("group", "key", "value", "message"),
    [
        ("model", "n_layers", "2", r"model\.n_layers: expected int, got '2'"),
        ("model", "n_layers", 2.5, r"model\.n_layers: expected int, got 2\.5"),
        ("model", "n_layers", True, r"model\.n_layers: expected int, got True"),
        ("model", "n_layers", None, r"model\.n_layers: expected int, got None"),
        ("model", "n_layers", [2], r"model\.n_layers: expected int, got \[2\]"),
        ("model", "bias", 1, r"model\.bias: expected bool, got 1"),
        ("model", "norm", "batchnorm", r"expected one of rmsnorm, layernorm; got 'batchnorm'"),
        ("model", "ff_ratio", math.nan, r"model\.ff_ratio: expected a finite number, got nan"),
        ("recipe", "peak_lr", "1e999", r"recipe\.peak_lr: expected a finite number"),
        ("recipe", "peak_lr", True, r"recipe\.peak_lr: expected float, got True"),
        ("data", "paths", "a.txt", r"data\.paths: expected a list, as in \[a,b\]; got 'a\.txt'"),
        ("data", "paths", [1], r"data\.paths\[0\]: expected str, got 1"),
        ("data", "name", "../../x", r"data\.name='\.\./\.\./x' must match"),
        ("budget", "flops", -1e12, r"budget: set exactly one|must be a finite number above 0"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(raw, group, key, value, message):
    raw[group][key] = value
    with pytest.raises(ConfigError, match=message) as caught:
        build_run(raw)
    assert "\n" not in str(caught.value)


def test_numbers_convert_without_loss(raw):
    raw["model"]["n_layers"] = 3.0
    raw["model"]["ff_ratio"] = 4
    raw["recipe"]["peak_lr"] = "3e-3"  # YAML reads 3e-3 as text
    config, _ = build_run(raw)
    assert config.model.n_layers == 3
    assert isinstance(config.model.n_layers, int)
    assert config.recipe.peak_lr == 0.003


def test_seed_zero_stays_zero(raw):
    assert build_run(raw)[0].seed == 0


def test_both_or_no_budgets_are_refused():
    rest = {"convention": "total", "min_steps": 1, "tolerance": 0.1}
    for flops, n_tokens in ((1e12, 1e6), (None, None)):
        with pytest.raises(ConfigError, match="exactly one of"):
            build(BudgetConfig, {"flops": flops, "n_tokens": n_tokens, **rest})


@pytest.mark.parametrize(
    ("width", "ratio", "multiple", "expected"),
    [(96, 8 / 3, 256, 256), (128, 8 / 3, 256, 512), (64, 4.0, 8, 256), (100, 4.0, 1, 400)],
)
def test_mlp_width_rounds_up_to_the_multiple(raw, width, ratio, multiple, expected):
    shape = raw["model"] | {"d_model": width, "d_head": 4, "ff_ratio": ratio}
    assert build(ModelConfig, shape | {"ff_multiple": multiple}).d_ff == expected


def test_hash_ignores_order_and_spelling_but_not_content(raw):
    config, _ = build_run(raw)
    reordered = dict(reversed(list(raw.items())))
    reordered["recipe"] = {**raw["recipe"], "peak_lr": "1.0e-2"}
    assert config_hash(build_run(reordered)[0]) == config_hash(config)
    raw["seed"] = 1
    assert config_hash(build_run(raw)[0]) != config_hash(config)


def test_one_row_of_evaluation_is_refused_before_training(raw):
    """Its standard error would be NaN, and no record can hold that."""
    raw["evaluation"]["n_tokens"] = 2 * raw["seq_len"]["seq_len"] - 1
    with pytest.raises(ConfigError, match=r"must hold two rows of seq_len.seq_len"):
        build_run(raw)
