import math

import pytest

from llmtrain.spec.build import build
from llmtrain.spec.config import ScheduleConfig, SeqLenConfig
from llmtrain.spec.errors import ConfigError
from llmtrain.spec.schedule import lr_factor_at, stages


def schedule(**changes):
    base = {
        "name": "cosine",
        "final_fraction": 0.1,
        "cooldown_fraction": 0.2,
        "cooldown_shape": "sqrt",
    }
    return build(ScheduleConfig, base | changes)


def seq_len(**changes):
    base = {
        "seq_len": 128,
        "mode": "reshape",
        "pacing": "linear",
        "start": 16,
        "warmup_fraction": 0.28,
        "warmup_tokens": None,
        "root": 2.0,
        "multiple_of": 8,
    }
    return build(SeqLenConfig, base | changes)


# (tokens, factor) with a warmup of 100 and 1,100 tokens in all, from each formula by hand.
TABLE = {
    "cosine": [(0, 0.0), (50, 0.5), (100, 1.0), (600, 0.55), (1100, 0.1)],
    "linear": [(50, 0.5), (100, 1.0), (600, 0.55), (1100, 0.1)],
    "constant": [(50, 0.5), (100, 1.0), (1100, 1.0)],
    "inverse_sqrt": [(50, 0.5), (100, 1.0), (400, 0.5), (900, 1 / 3)],
    "wsd": [(50, 0.5), (100, 1.0), (880, 1.0), (880 + 55, 0.55), (1100, 0.1)],
}


@pytest.mark.parametrize("name", TABLE)
def test_schedule_has_the_values_of_its_formula(name):
    for tokens, factor in TABLE[name]:
        found = lr_factor_at(tokens, schedule(name=name), warmup_tokens=100, n_tokens=1100)
        assert found == pytest.approx(factor, abs=1e-12), (name, tokens)


def test_linear_cooldown_is_a_straight_line():
    wsd = schedule(name="wsd", cooldown_shape="linear", final_fraction=0.0)
    factors = [lr_factor_at(t, wsd, warmup_tokens=0, n_tokens=1000) for t in (800, 850, 900, 1000)]
    assert factors == pytest.approx([1.0, 0.75, 0.5, 0.0])


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("final", [0.0, 1.0])
def test_every_schedule_stays_between_zero_and_the_peak(name, final):
    config = schedule(name=name, final_fraction=final)
    for warmup in (0, 1, 1000):
        factors = [
            lr_factor_at(t, config, warmup_tokens=warmup, n_tokens=1000) for t in range(0, 1001, 7)
        ]
        assert all(0.0 <= factor <= 1.0 for factor in factors)


def test_linear_pacing_reaches_each_length_where_li_et_al_do():
    found = [(s.length, s.until) for s in stages(seq_len())]
    # l(t) = 16 + 112 t/Tc reaches 32, 64 and 128 at t/Tc = 1/7, 3/7 and 1; Tc = .28 of the run.
    expected = [(16, 0.04), (32, 0.12), (64, 0.28), (128, 1.0)]
    assert [length for length, _ in found] == [length for length, _ in expected]
    assert [until for _, until in found] == pytest.approx([until for _, until in expected])


def test_root_pacing_is_faster_and_discrete_pacing_is_even():
    root = [s.until for s in stages(seq_len(pacing="root"))]
    linear = [s.until for s in stages(seq_len())]
    assert root[0] == pytest.approx(0.28 * math.pow(1 / 7, 2))
    assert all(a <= b for a, b in zip(root, linear, strict=True))
    discrete = [s.until for s in stages(seq_len(pacing="discrete", warmup_fraction=0.3))]
    assert discrete == pytest.approx([0.1, 0.2, 0.3, 1.0])


@pytest.mark.parametrize("changes", [{"pacing": "none"}, {"warmup_fraction": 0.0}, {"start": 128}])
def test_no_warmup_is_one_full_stage(changes):
    assert [(s.length, s.until) for s in stages(seq_len(**changes))] == [(128, 1.0)]


def test_lengths_that_do_not_double_up_or_are_too_many_are_refused():
    with pytest.raises(ConfigError, match="power of two"):
        stages(seq_len(start=24))
    with pytest.raises(ConfigError, match="at most 6"):
        stages(seq_len(seq_len=2048, start=8))
    with pytest.raises(ConfigError, match="multiples of"):
        seq_len(start=12)
