"""The house: imports point down, and each outside dependency has one door."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping

import pytest

ROOMS = {"spec", "board", "corpus", "training", "sweep", "scaling"}
MAY_USE = {
    "spec": set(),
    "board": {"spec"},
    "corpus": {"spec"},
    "sweep": {"spec", "corpus", "scaling"},
    "training": {"spec", "board", "corpus"},
    "scaling": {"spec", "board"},
}
DOORS = {
    "hydra": ("scripts", "sweep.launcher", "sweep.sweeper", "hydra_plugins"),
    "omegaconf": ("scripts", "sweep.launcher", "sweep.sweeper"),
    "torch": ("training",),
    "safetensors": ("training.checkpoint",),
    "scipy": ("scaling",),
    "matplotlib": ("scaling.plot",),
    "datasets": ("corpus.sources",),
    "pyarrow": ("corpus.sources",),
    "tokenizers": ("corpus.tokenizer",),
    "wandb": ("board.courier", "board.pull", "board.offline"),
    "wandb_workspaces": ("board.dashboard",),
    "pynvml": ("training.energy",),
    "codecarbon": ("scripts.benches.energy",),
    "rich": ("scripts",),
    "submitit": ("sweep.slurm",),
}


def imports(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):  # imports inside functions count too
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports escape the check"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(sources: Mapping[str, str]) -> Iterator[str]:
    """Yield a line per forbidden import; keys are module names without `llmtrain.`."""
    for module, source in sources.items():
        room = module.partition(".")[0]
        allowed = MAY_USE.get(room, ROOMS) | {room}
        for name in imports(source):
            top, target = [*name.split("."), ""][:2]
            doors = DOORS.get(top, (module,))
            at_door = any(f"{module}.".startswith(f"{door}.") for door in doors)
            down = top != "llmtrain" or target not in ROOMS - allowed
            plain = room != "spec" or top == "llmtrain" or top in sys.stdlib_module_names
            if not (at_door and down and plain):
                yield f"{module} must not import {name}"


def read_sources(root) -> dict[str, str]:
    sources = {}
    for top in ("llmtrain", "scripts", "hydra_plugins"):
        for path in (root / top).rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[1:] if top == "llmtrain" else parts)
            sources[name.removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return sources


def test_imports_point_down_and_use_the_doors(root):
    sources = read_sources(root)
    assert len(sources) > 30
    assert list(violations(sources)) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("spec.plan", "import numpy"),
        ("spec.plan", "from llmtrain.corpus import shards"),
        ("scaling.law", "import torch"),
        ("scaling.law", "from llmtrain.training.loop import train"),
        ("training.loop", "def f():\n    import wandb"),
        ("training.loop", "from llmtrain import scaling"),
        ("sweep.grid", "from hydra import compose"),
        ("corpus.shards", "import datasets.load"),
    ],
)
def test_a_planted_import_is_caught(module, source):
    assert len(list(violations({module: source}))) == 1


TRAIN_WITHOUT_EXTRAS = """
import sys
for name in ("wandb", "datasets", "hydra", "omegaconf", "tokenizers", "rich", "pynvml"):
    sys.modules[name] = None  # importing it raises ImportError
from llmtrain.training import loop, model, optim, session
from llmtrain.corpus import prepare, shards
assert "scipy" not in sys.modules
"""

ANALYSE_WITHOUT_TORCH = """
import sys
for name in ("torch", "hydra", "wandb", "datasets"):
    sys.modules[name] = None
import pkgutil, importlib
import llmtrain.scaling
for module in pkgutil.walk_packages(llmtrain.scaling.__path__, "llmtrain.scaling."):
    importlib.import_module(module.name)
"""


@pytest.mark.parametrize("program", [TRAIN_WITHOUT_EXTRAS, ANALYSE_WITHOUT_TORCH])
def test_a_room_imports_without_what_it_must_not_need(program, root):
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=root,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
