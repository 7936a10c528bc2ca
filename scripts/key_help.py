"""The keys of a script with a sentence each, from the classes that hold them."""

import ast
import dataclasses
import inspect
import signal
import sys
import textwrap
import typing
from collections.abc import Mapping
from typing import Any

from edge import CONFIG_DIR, compose
from omegaconf import OmegaConf

from llmtrain.board.dashboard import DashboardConfig
from llmtrain.scaling.config import AnalyzeConfig, PredictConfig
from llmtrain.spec.data import DataConfig
from llmtrain.spec.settings import TrainConfig
from llmtrain.spec.sweeps import LaunchConfig, SweepConfig
from llmtrain.sweep.launcher import PoolConfig

WIDTH, COLUMN = 100, 34


def is_asked_for() -> bool:
    """Return whether the command line asks for help."""
    asked = bool({"-h", "--help"} & set(sys.argv[1:]))
    if asked:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--help | head` ends like any command
    return asked


def train_keys() -> str:
    """Return the keys of a run, of a sweep and of a call, with the choices of every group."""
    composed, sweep = compose("train", []), compose("train", ["sweep=isoflop"])["sweep"]
    pool = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "hydra/launcher/pool.yaml"))
    assert isinstance(pool, dict)
    groups = [name for name in composed if (CONFIG_DIR / name).is_dir()]
    parts = ["Groups of keys, and the files to choose from:"]
    for name in (*groups, "hydra/launcher"):
        parts += entry(f"{name}=FILE", ", ".join(choices(name)))
    parts += ["", "Keys, with what they are when nothing is said (sweep.*: of sweep=isoflop):"]
    parts += key_lines(LaunchConfig, composed) + key_lines(TrainConfig, composed)
    parts += key_lines(SweepConfig, sweep, "sweep.")
    parts += key_lines(PoolConfig, {str(k): v for k, v in pool.items()}, "hydra.launcher.")
    return "\n".join(parts)


def choices(group: str) -> list[str]:
    """Return the files of a group."""
    return sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))


def analyze_keys() -> str:
    """Return the keys of configs/analyze.yaml."""
    return "\n".join(["Keys:", *key_lines(AnalyzeConfig, compose("analyze", []))])


def predict_keys() -> str:
    """Return the keys of configs/predict.yaml."""
    return "\n".join(["Keys:", *key_lines(PredictConfig, compose("predict", []))])


def dashboard_keys() -> str:
    """Return the keys of configs/dashboard.yaml."""
    return "\n".join(["Keys:", *key_lines(DashboardConfig, compose("dashboard", []))])


def data_keys() -> str:
    """Return the keys of configs/data, and the corpora to choose from."""
    files = entry("data=FILE", ", ".join(choices("data")))
    keys = key_lines(DataConfig, compose("prepare", [])["data"], "data.")
    return "\n".join(["Keys:", *files, *keys])


def key_lines(kind: type[Any], values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return `key=value  sentence` for every field, nested classes after the plain fields."""
    hints = typing.get_type_hints(kind)
    sentences = field_sentences(kind)
    plain, nested = [], []
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            inner = hints[field.name]
            assert isinstance(inner, type)
            nested += key_lines(inner, values[field.name], f"{prefix}{field.name}.")
        else:
            key = f"{prefix}{field.name}={written(values[field.name])}"
            plain += entry(key, f"{sentences.get(field.name, '')}{one_of(hints[field.name])}")
    return plain + nested


def one_of(hint: Any) -> str:
    """Return the values that a field is limited to as a sentence; nothing for any other field."""
    parts = [hint, *typing.get_args(hint)]  # a Literal, or a Literal or None
    found = [part for part in parts if typing.get_origin(part) is typing.Literal]
    return f" One of {', '.join(typing.get_args(found[0]))}." if found else ""


def entry(key: str, sentence: str) -> list[str]:
    """Return a key and its sentence as lines of at most WIDTH columns."""
    room = " " * COLUMN
    lines = textwrap.wrap(sentence, WIDTH - COLUMN) or [""]
    head = f"  {key}"
    first = [f"{head:<{COLUMN}}{lines[0]}"] if len(head) + 2 <= COLUMN else [head, room + lines[0]]
    return [line.rstrip() for line in [*first, *(room + line for line in lines[1:])]]


def written(value: Any) -> str:
    """Return a default as one types it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def field_sentences(kind: type[Any]) -> dict[str, str]:
    """Return what stands below each field of a class in its source; Python does not keep it."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            found[field.target.id] = " ".join(str(below.value.value).split())
    return found
