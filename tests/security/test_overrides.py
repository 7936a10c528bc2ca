"""C1, T2, T3: what a command line may say; all else is one line, exit code 2, nothing touched."""

import dataclasses
import random
import re
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

import pytest

from llmtrain.spec.settings import TrainConfig

Storm = Callable[[Sequence[Sequence[str]]], list[dict[str, Any]]]

WRONG = {
    int: ("1.5", "two", "true", "nan", "1e999", "[1]", "{a:1}", "", "1e18", "9" * 30, "0x1g"),
    float: ("nan", "inf", "-inf", "1e999", "many", "[1.0]", "{a:1}", "true", "", "1..5"),
    bool: ("1", "yes", "maybe", "[true]", "null", "''"),
    str: ("3", "true", "1.5", "[a]", "{a:1}"),
    tuple: ("3", "text", "true", "{a:1}", "[[[1]]]"),
    Literal: ("nonesuch", "3", "true", "[a]", "''", "Cosine "),
}
NAMES = ("name", "data.name", "tracking.project", "tracking.entity")
BAD_NAMES = (
    "../x", "a/b", "..", ".hidden", "a\\\\b", "/etc/passwd", "-rf", "a b", "é", "名", "a" * 65,
    "''", "x\n", "x;ls", "$(ls)", "`ls`", "%2e%2e", "con:", "~", "\u202ex",
)  # fmt: skip
OUT_OF_RANGE = (
    "seed=-1", "seed=2147483648", "model.d_model=0", "model.n_layers=-3", "model.dropout=1.0",
    "model.d_head=7", "budget.flops=-1e12", "budget.flops=0", "budget.tolerance=0.5",
    "data.val_fraction=0", "data.val_fraction=0.9", "data.vocab_size=255",
    "data.max_epochs=0", "optimizer.eps=0", "optimizer.grad_clip=-1", "schedule.final_fraction=2",
    "schedule.cooldown_fraction=0", "seq_len.seq_len=0", "seq_len.start=256", "seq_len.start=9",
    "recipe.lr_multiplier=0", "recipe.beta1=1", "recipe.weight_decay=-0.1",
    "evaluation.points=0", "runtime.n_threads=0", "checkpoint.keep=0",
    "runtime.n_threads=100000000", "checkpoint.every_s=-5", "tracking.points=0", "runs_root=' '",
    "data.root=''", "data.source=hub",
)  # fmt: skip
TOGETHER = (  # each is fine by itself: the line names another key
    "budget.flops=1e3", "model.n_layers=1000000000", "recipe.batch_tokens=100000000",
    "recipe=fixed", "budget.n_tokens=5", "data.source=local", "evaluation.n_tokens=8",
)  # fmt: skip
SYNTAX = (
    "nonsense", "=3", "seed", "seed:1", "-seed=1", "--seed=1", "seed='", 'name="', "name={{x}}",
    "seed=1=2", "seed=1;seed=2", "seed=[1", "seed=1]", "seed={a", "name=!!x", "name=&a", "name=<<",
    "model[0]=1", "seed=1\n", "seed=\x00", "name=a\x1b[31mb", "--config-dir=/tmp", "--info=all",
    "--config-name=x", "-cd=/tmp", "--resolve=1", "--experimental-rerun=x", "seed=\udc80",
    "+~seed=1",
)  # fmt: skip
ADDED = ("+x=1", "++x=1", "+model.x=1", "++model.x=1", "~nonesuch", "~seed", "~model", "+seed=3")
CODE = (
    "name=${oc.env:HOME}", "name=\\${x}", "data.root=${oc.env:WANDB_API_KEY}", "name=${now:%Y}",
    "hydra.run.dir=/tmp/x", "hydra.job.env_set.X=1", "hydra.searchpath=[file:///tmp]",
    "hydra/job_logging=default", "+hydra.callbacks.x=1", "hydra/launcher=nonesuch", "hydra=null",
    "model=../../../../tmp/evil", "model=/etc/passwd", "experiment=../train", "model@x=base",
    "model=nonesuch", "model=null", "model=3", "model=[w32d2]", "model=''", "sweep=a/b",
)  # fmt: skip
TWICE = (
    ("seed=1", "seed=2"),
    ("model=base", "model=demo"),
    ("budget.flops=1e12", "++budget.flops=2e12"),
)
HUGE = ("name=" + "a" * 1_000_000, "data.paths=" + "[" * 100_000, "data.paths=" + "[" * 9 + "]" * 9,
        "model.n_layers=" + "9" * 5000)  # fmt: skip
RULE = re.compile(
    r"must |expected |unknown key|is no override|cannot be read|adds a key|set twice|not accepted"
    r"|can be set from|no such choice|more than|unprintable|exactly one|missing key|needs |is empty"
    r"|multirun|looks like a config group|buys |is missed by"
)


def leaves(kind: type = TrainConfig, path: str = "") -> Iterator[tuple[str, Any, bool]]:
    """Yield (dotted key, kind of value, may be null) of every field."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint, key = hints[field.name], path + field.name
        options = [hint]
        if get_origin(hint) is types.UnionType:
            options = [o for o in get_args(hint) if o is not type(None)]
        if dataclasses.is_dataclass(options[0]):
            yield from leaves(options[0], f"{key}.")
        else:
            yield key, get_origin(options[0]) or options[0], options != [hint]


def malformed(count: int) -> list[tuple[str, ...]]:
    """Return `count` different command lines, none of which makes sense."""
    rng = random.Random(0)
    found: dict[tuple[str, ...], None] = {}
    for key, kind, nullable in leaves():
        for value in WRONG[kind]:
            found[(f"{key}={value}",)] = None
        if not nullable:
            found[(f"{key}=null",)] = None
        cut = rng.randrange(len(key.rpartition(".")[2]))
        found[(f"{key[: len(key) - cut - 1]}zq{key[len(key) - cut :]}=1",)] = None
        found[(f"{key}.deeper=1",)] = None
        found[(f"{key}=${{oc.env:HOME}}",)] = None
        found[(f"+{key}=1",)] = None
    for name in BAD_NAMES:
        found |= {(f"{key}={name}",): None for key in NAMES}
    for family in (OUT_OF_RANGE, TOGETHER, SYNTAX, ADDED, CODE, HUGE):
        found |= {(override,): None for override in family}
    found |= dict.fromkeys(TWICE)
    lines = list(found)
    rng.shuffle(lines)
    assert len(lines) >= count, len(lines)
    return lines[:count]


def check_refused(line: Sequence[str], answer: dict[str, Any]) -> None:
    """Exit code 2, one line with the key, the value and the rule, and nothing touched."""
    error = answer["error"]
    assert answer["code"] == 2, (line, answer)
    assert error.startswith("train.py: "), (line, error)
    assert error.count("\n") == 1, (line, error)
    assert error.endswith("\n"), (line, error)
    assert error[:-1].isprintable(), (line, error)
    assert len(error) < 2100, line
    assert "Traceback" not in error
    assert answer["touched"] == [], line
    assert RULE.search(error), (line, error)
    if line[0] in TOGETHER or line[0].lstrip("+").startswith("hydra"):
        return
    key = re.sub(r"[^a-z_].*", "", line[0].lstrip("+~-").partition("=")[0].rpartition(".")[2])
    assert key in error, (line, error)
    # The value as typed, or as it was read (1e999 is inf), stands behind '=' or 'got'.
    typed = repr(line[0][:50])[1:-1] in error
    assert (
        typed or "got " in error or f"{key}=" in error or "key" in error or "is empty" in error
    ), (line, error)


PARTS = [slice(25)] + [
    pytest.param(slice(first, first + 125), marks=pytest.mark.slow) for first in range(0, 1000, 125)
]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: f"{part.start or 0}-{part.stop}")
def test_a_malformed_command_line_is_one_line_and_touches_nothing(
    storm: Storm, part: slice
) -> None:
    lines = malformed(1000)[part]
    answers = storm(lines)
    assert len(answers) == len(lines) >= 25
    for line, answer in zip(lines, answers, strict=True):
        check_refused(line, answer)
