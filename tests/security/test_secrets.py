"""T5: a secret of the environment is in no file, no line and no copy that a run leaves."""

import dataclasses
import json
import os
import random
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from llmtrain.board import mirror
from llmtrain.corpus.shards import open_corpus
from llmtrain.spec import rundir
from llmtrain.spec.build import build
from llmtrain.spec.errors import ConfigError
from llmtrain.spec.redact import redact, refuse_secret
from llmtrain.spec.settings import TrainConfig, build_run
from llmtrain.spec.sweeps import SweepConfig
from llmtrain.sweep.pool import Job, Watcher, make_slots, open_pool
from llmtrain.training import runtime
from llmtrain.training.loop import train

CANARY = "canary-7d1f'\"\\ 0e2b"
PLAIN = "canary-5b3a9c0d1e2f4a6b8c7d9e0f1a2b3c4d5e6f7081"
NAMES = ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "My_Credentials")


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Put a secret into five variables; return them all."""
    values = [f"{PLAIN}{name.lower()}" for name in NAMES[:-1]] + [CANARY]
    for name, value in zip(NAMES, values, strict=True):
        monkeypatch.setenv(name, value)
    return tuple(values)


def positions(secret: str, count: int) -> Iterator[str]:
    """Yield texts with the secret in different places and spellings."""
    rng = random.Random(0)
    spell: list[Callable[[str], str]] = [
        str, repr, json.dumps, shlex.quote, lambda s: quote(s, safe=""), lambda s: f"'{s}'",
    ]  # fmt: skip
    around = (
        "{}", "x{}y", "https://user:{}@host/path", "https://{}@api.wandb.ai", "--key {}", "key={}",
        '{{"config": {}}}', "KeyError: {}", "Authorization: Bearer {}", "a\n{}\nb", "[{}, {}]",
    )  # fmt: skip
    for _ in range(count):
        text = rng.choice(spell)(secret)
        yield rng.choice(("", "log: ", "é ")) + rng.choice(around).replace("{}", text)


@pytest.mark.parametrize("which", [0, 4])
def test_a_secret_is_redacted_in_two_hundred_positions(
    canaries: tuple[str, ...], which: int
) -> None:
    for text in positions(canaries[which], 200):
        left = redact(text)
        assert "canary" not in left, (text, left)
        assert "[redacted]" in left


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("see https://me:pw@host/x", "see https://[redacted]@host/x"),
        ("password=hunter2 next", "password=[redacted] next"),
        ("wandb.api_key=abc, x", "wandb.api_key=[redacted], x"),
        ("token hf_abcdefghijklmnopqrst", "token [redacted]"),
        ("budget.n_tokens=5120 data.tokenizer=bpe", "budget.n_tokens=5120 data.tokenizer=bpe"),
        ("unknown key; did you mean x", "unknown key; did you mean x"),
        ("git@host:path and a@b.c", "git@host:path and a@b.c"),
    ],
)
def test_secrets_are_known_by_their_name_and_shape_too(text: str, left: str) -> None:
    assert redact(text) == left


def test_switches_paths_and_numbers_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("TOKENIZERS_PARALLELISM", "false"), ("SECRETS_DIR", "/home/someone"),
        ("MAX_TOKENS", "100000000"), ("MONKEY", "short"), ("TOKENIZED_DATASET", "fineweb_edu"),
        ("TOKENIZED_DATA", "data/fineweb"), ("KEYBOARD_LAYOUT", "us-international"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    text = "false in /home/someone with 100000000 short tokens"
    assert redact(text) == text
    refuse_secret("data.root", "/home/someone/data")
    refuse_secret("data.name", "fineweb_edu")
    refuse_secret("data.paths", "data/fineweb/a.txt")


def test_a_name_that_only_sounds_secret_needs_a_value_that_looks_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MYTOKENS", "a1b2c3d4e5f6a7b8c9d0e1f2")
    assert redact("it is a1b2c3d4e5f6a7b8c9d0e1f2") == "it is [redacted]"
    monkeypatch.setenv("WANDBAPIKEY", "short-one")
    assert redact("it is short-one") == "it is [redacted]"


def text_keys(raw: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every text in nested dictionaries."""
    if isinstance(raw, dict):
        for key, value in raw.items():
            yield from text_keys(value, (*path, key))
    elif isinstance(raw, str) or (isinstance(raw, list) and raw and isinstance(raw[0], str)):
        yield path


def test_no_setting_takes_a_secret(raw: dict[str, Any], canaries: tuple[str, ...]) -> None:
    paths = list(text_keys(raw))
    assert len(paths) > 15
    for path in paths:
        for value in (canaries[0], f"x/{canaries[-1]}", "https://me:pw@host/data"):
            changed: Any = json.loads(json.dumps(raw))
            group = changed
            for key in path[:-1]:
                group = group[key]
            group[path[-1]] = [value] if isinstance(group[path[-1]], list) else value
            with pytest.raises(ConfigError) as caught:
                build_run(changed)
            assert "canary" not in redact(str(caught.value))
    named = [f.name for kind in (TrainConfig, SweepConfig) for f in dataclasses.fields(kind)]
    assert not [name for name in named if name.endswith(("key", "token", "secret", "password"))]


def test_a_command_line_with_a_secret_is_refused_and_not_repeated(
    storm: Callable[[Sequence[Sequence[str]]], list[dict[str, Any]]], canaries: tuple[str, ...]
) -> None:
    lines = [
        [form.replace("{}", canaries[0])]
        for form in (
            "data.root={}", "name={}", "+wandb.key={}", "data.paths=[https://x:{}@host/a.txt]",
            "{}", "{}=1", "hydra.launcher.{}=1", "seed='{}", "--api-key={}", "data.root=a{}b",
        )
    ]  # fmt: skip
    for line, answer in zip(lines, storm(lines), strict=True):
        assert answer["code"] == 2, (line, answer)
        assert "canary" not in answer["error"], line
        assert answer["error"].count("\n") == 1


def fail(payload: dict[str, Any], _report: object) -> dict[str, Any]:
    raise RuntimeError(f"cannot log in with {payload['secret']}")


def test_errors_are_redacted_wherever_they_are_kept(
    canaries: tuple[str, ...],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(root / "scripts"))
    monkeypatch.setattr(sys, "argv", ["train.py"])
    from edge import guarded  # noqa: PLC0415 - a script's module

    def raising(error: Exception) -> Callable[[], int]:
        def action() -> int:
            raise error

        return action

    for secret in canaries:
        assert guarded(raising(ConfigError(f"no access with {secret}"))) == 2
        assert guarded(raising(RuntimeError(f"a bug with {secret}"))) == 1
        runtime.warn(f"wandb stopped: {secret}")
        rundir.write_state(tmp_path, "failed", f"hub: https://me:{secret}@host")
    job = Job(name="cell", payload={"secret": canaries[0]}, cost=1.0)
    with open_pool(fail, make_slots(1)[:1]) as pool:
        (outcome,) = pool.run([job], Watcher())
    assert outcome.error == "RuntimeError: cannot log in with [redacted]"
    written = capfd.readouterr().err + (tmp_path / "state.json").read_text()
    assert "[redacted]" in written
    assert "canary" not in written


def test_a_run_with_its_offline_copy_holds_no_secret(
    canaries: tuple[str, ...],
    make: Any,
    tiny_corpus_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", f"--key={canaries[0]}"])
    for name in ("TIMEOUT_S", "LOCAL_S", "FINISH_S"):  # a crowded machine starts wandb slowly
        monkeypatch.setattr(mirror, name, 120)
    config = make({"runs_root": str(tmp_path / "runs"), "tracking.wandb": "offline"})
    train(config, open_corpus(tiny_corpus_dir))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert {"config.json", "record.json", "metrics.jsonl", "plan.json"} <= {p.name for p in files}
    for path in files:
        content = path.read_bytes()
        assert b"canary" not in content, path
    output = capfd.readouterr()
    assert "canary" not in output.out + output.err
    assert os.environ["HF_TOKEN"] == canaries[1]  # the environment itself is left alone


def test_a_file_of_cells_with_a_secret_is_refused(
    raw: dict[str, Any], canaries: tuple[str, ...]
) -> None:
    raw["data"]["root"] = canaries[2]
    with pytest.raises(ConfigError, match=r"data\.root holds the value of \$AWS_SECRET_ACCESS_KEY"):
        build(TrainConfig, raw)
