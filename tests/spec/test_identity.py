"""Names of runs: what decides the result is in them, what does not is not, and none collide."""

import copy
import dataclasses
import json
import random

import pytest

from llmtrain.spec.plan import run_id, run_identity
from llmtrain.spec.settings import build_run

# Keys that must not matter, and other values for them; written down apart from run_identity.
FREE = {
    "runtime.device": ["cpu", "auto"],
    "runtime.compile": [False, True],
    "runtime.n_threads": [1, 2, 8],
    "runtime.micro_batch_tokens": [None, 64, 128],
    "runtime.activation_checkpointing": [False, True],
    "runtime.peak_tflops": [None, 100.0],
    "runtime.parallel": ["none", "ddp", "fsdp"],
    "runtime.memory_gb": [None, 80.0],
    "runtime.hang_s": [None, 60.0],
    "guard.on_nonfinite": ["stop", "skip", "rollback"],
    "guard.max_skips": [10, 0],
    "guard.on_spike": ["note", "stop"],
    "runtime.cuda_graph": ["off", "auto"],
    "runtime.attention": ["auto", "flash", "cudnn", "math"],
    "runtime.stack": [1, 8],
    "checkpoint.every_s": [3600.0, 60.0],
    "checkpoint.every_steps": [None, 7],
    "checkpoint.keep": [2, 3],
    "checkpoint.background": [True, False],
    "tracking.wandb": ["disabled", "offline"],
    "tracking.project": ["llmtrain", "other"],
    "tracking.entity": [None, "me"],
    "tracking.points": [20, 5],
    "tracking.progress": [False, True],
    "evaluation.points": [1, 4],
    "evaluation.sample_tokens": [0, 16],
    "data.root": ["data", "elsewhere"],
    "data.max_epochs": [4.0, 100.0],
    "budget.min_steps": [2, 3],
    "budget.tolerance": [0.005, 0.02],
    "bill.region": ["world", "FRA"],
    "bill.grams_per_kwh": [None, 20.0],
    "bill.pue": [1.0, 1.2],
    "bill.device_watts": [None, 300.0],
    "bill.price_per_hour": [None, 2.5],
    "bill.currency": ["USD", "EUR"],
    "bill.assumed_mfu": [None, 0.3],
    "name": ["test", "other"],
    "runs_root": ["runs", "elsewhere"],
}
# Free too, where the schedule allows them; and a key that is left out of the identity while null.
TRUNK_KEYS = {"checkpoint.branch_at", "checkpoint.branch_from"}
NOT_STACKED = {"runtime.loss_head"}  # free, but refused beside runtime.stack
NULL_LEFT_OUT = {"seq_len.warmup_tokens"}
# Every kind of key that matters: numbers with many values, close together and far apart.
DECIDING = {
    "model.d_model": [16, 32, 64],
    "model.n_layers": [1, 2, 3, 4],
    "model.dropout": [0.0, 0.1],
    "model.norm": ["rmsnorm", "layernorm"],
    "model.init_std": [0.02, 0.020000001],
    "data.val_fraction": [0.1, 0.2],
    "data.deduplicate": ["none", "exact"],
    "optimizer.name": ["adamw", "adam", "muon"],
    "optimizer.eps": [1e-8, 1e-9],
    "schedule.name": ["cosine", "linear", "wsd"],
    "seq_len.seq_len": [32, 64],
    "seq_len.pacing": ["none", "linear"],
    "recipe.peak_lr": [0.01, 0.0100000001, 0.02],
    "recipe.batch_tokens": [256, 512],
    "recipe.beta2": [0.95, 0.98],
    "budget.n_tokens": [5120, 5121, 102_400],
    "budget.convention": ["full_attention", "chinchilla"],
    "evaluation.n_tokens": [512, 1024],
    "runtime.dtype": ["float32", "bfloat16"],
    "seed": list(range(50)),
}


def changed(raw, changes):
    new = copy.deepcopy(raw)
    for key, value in changes.items():
        *path, last = key.split(".")
        group = new
        for part in path:
            group = group[part]
        group[last] = value
    return new


def draw(rng, keys, share):
    return {key: rng.choice(values) for key, values in keys.items() if rng.random() < share}


def respelled(value):
    """Return the same configuration as other files might spell it: key order, 1e-3, 5.0 for 5."""
    if isinstance(value, dict):
        return {key: respelled(item) for key, item in reversed(value.items())}
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return repr(value) if isinstance(value, float) else value


@pytest.mark.parametrize("n_pairs", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_pair_shares_an_id_exactly_where_all_that_decides_is_the_same(raw, n_pairs):
    rng = random.Random(0)
    base = {key: values[0] for key, values in DECIDING.items()}
    names, same = {}, 0
    for _ in range(n_pairs):
        left = base | draw(rng, DECIDING, 0.3)
        right = left | draw(rng, DECIDING, rng.choice([0.0, 0.1]))
        ids = []
        for deciding in (left, right):
            config = build_run(changed(raw, deciding | draw(rng, FREE, 0.5)))[0]
            ids.append(run_id(config))
            assert names.setdefault(ids[-1], deciding) == deciding  # across all pairs, too
        assert (ids[0] == ids[1]) == (left == right)
        same += left == right
    assert 0.3 < same / n_pairs < 0.9  # both kinds of pairs were met
    assert len(names) > n_pairs / 2


def test_another_spelling_of_the_same_configuration_has_the_same_id(raw):
    rng = random.Random(1)
    for _ in range(200):
        one = changed(raw, draw(rng, DECIDING, 0.5))
        other = json.loads(json.dumps(respelled(one)))
        assert run_id(build_run(one)[0]) == run_id(build_run(other)[0])


def leaves(value, path=""):
    if not isinstance(value, dict):
        return {path}
    return set().union(*(leaves(v, f"{path}.{k}".lstrip(".")) for k, v in value.items()))


def test_an_amount_that_python_gave_as_an_int_is_the_same_amount(make):
    built = make({"budget.n_tokens": 25_600})
    whole = dataclasses.replace(built, budget=dataclasses.replace(built.budget, n_tokens=25_600))
    assert type(whole.budget.n_tokens) is int
    assert run_id(whole) == run_id(built)


def test_every_key_of_a_run_is_either_free_or_decides(make, raw):
    """A new key must be put on one of the two sides."""
    identity = leaves(run_identity(make())) - {"dtype"} | {"runtime.dtype"}
    assert leaves(raw) == identity | set(FREE) | TRUNK_KEYS | NOT_STACKED | NULL_LEFT_OUT
    assert not identity & set(FREE)
    for key, values in FREE.items():
        ids = {run_id(build_run(changed(raw, {key: value}))[0]) for value in values}
        assert len(ids) == 1, key
    for key, values in DECIDING.items():
        ids = {run_id(build_run(changed(raw, {key: value}))[0]) for value in values}
        assert len(ids) == len(values), key


def test_the_loss_head_is_free(make):
    assert run_id(make({"runtime.loss_head": "chunked"})) == run_id(make())


def test_trunk_keys_are_free_and_a_length_warmup_in_tokens_decides(make):
    plain = {"schedule.name": "wsd", "seq_len.pacing": "linear", "seq_len.start": 16}
    whole = run_id(make(plain))
    assert run_id(make(plain | {"checkpoint.branch_at": [7]})) == whole
    assert run_id(make(plain | {"checkpoint.branch_from": "C1e9-w8d2-s0-0123456789"})) == whole
    assert run_id(make(plain | {"seq_len.warmup_tokens": 1024})) != whole
