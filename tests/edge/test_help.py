"""--help of every script: two examples that are real, and a sentence for each of its keys."""

import dataclasses
import re
import shlex
import typing

import key_help
import pytest
from edge import CONFIG_DIR, check_overrides
from help_text import wrapped

from llmtrain.board.dashboard import DashboardConfig
from llmtrain.scaling.config import AnalyzeConfig, PredictConfig
from llmtrain.spec.data import DataConfig
from llmtrain.spec.settings import TrainConfig
from llmtrain.spec.sweeps import LaunchConfig, SweepConfig
from llmtrain.sweep.launcher import PoolConfig

SCRIPTS = sorted(
    path.name
    for path in (CONFIG_DIR.parent / "scripts").glob("*.py")
    if "run_edge(main)" in path.read_text() or path.name == "train.py"
)
KINDS = {
    "train.py": {"": (LaunchConfig, TrainConfig), "sweep.": (SweepConfig,)},
    "analyze.py": {"": (AnalyzeConfig,)},
    "predict.py": {"": (PredictConfig,)},
    "dashboard.py": {"": (DashboardConfig,)},
    "prepare_data.py": {"data.": (DataConfig,)},
}


def leaves(kind, prefix):
    """Return every key of a configuration class, dotted."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from leaves(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_has_two_examples_and_every_key(cli, script):
    done = cli(script, "--help")
    assert done.returncode == 0, done.stderr
    text = done.stdout
    examples = re.findall(rf"^  python scripts/{re.escape(script)} (.*)$", text, re.MULTILINE)
    assert len(examples) >= 2
    assert max(map(len, text.splitlines())) <= 100
    assert "Keys" in text
    for example in examples:
        words = [word for word in shlex.split(re.split(r" {3,}|>", example)[0]) if word != "-m"]
        if script not in ("status.py", "bench.py", "drain.py"):
            check_overrides(words)
    for prefix, kinds in KINDS.get(script, {}).items():
        for kind in kinds:
            for key in leaves(kind, prefix):
                assert re.search(rf"^  {re.escape(key)}=", text, re.MULTILINE), key
    if script in ("train.py", "plan.py"):  # a key of few values says which
        flat = " ".join(text.split())
        assert "One of gelu, swiglu, relu2." in flat
        assert "One of none, linear, root, discrete." in flat
        assert "One of fixed, adaptive, lr_bracket." in flat
    narrow = wrapped(text, 80)
    assert max(map(len, narrow.splitlines())) <= 80
    assert re.sub(r" \\\n|^ +#|\s", "", narrow, flags=re.M) == re.sub(r"\s", "", text)
    for line in narrow.replace(" \\\n", " ").splitlines():  # a continued command is one line
        assert line.count("'") % 2 == 0 or not line.startswith("  python")


def test_help_is_as_wide_as_the_terminal_and_whole_in_a_pipe(cli, monkeypatch):
    whole = cli("status.py", "--help").stdout
    assert max(map(len, whole.splitlines())) > 80
    monkeypatch.setenv("COLUMNS", "80")
    narrow = cli("status.py", "--help").stdout
    assert max(map(len, narrow.splitlines())) <= 80
    assert "runs' own\n                    configuration: region, grams_per_kwh" in narrow


def test_every_key_has_a_sentence():
    kinds = [LaunchConfig, TrainConfig, SweepConfig, AnalyzeConfig, PredictConfig, PoolConfig]
    while kinds:
        kind = kinds.pop()
        hints = typing.get_type_hints(kind)
        sentences = key_help.field_sentences(kind)
        for field in dataclasses.fields(kind):
            if dataclasses.is_dataclass(hints[field.name]):
                kinds.append(hints[field.name])
            else:
                assert sentences.get(field.name, "").endswith("."), (kind, field.name)
