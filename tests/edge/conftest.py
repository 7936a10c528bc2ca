import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def replaced(arguments: Sequence[str]) -> tuple[str, ...]:
    """Keep the last of the overrides with one key: the scripts refuse a key that is set twice."""
    return tuple({argument.partition("=")[0]: argument for argument in arguments}.values())


@pytest.fixture
def cli(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a script in an empty folder, without a terminal or a key."""

    def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        arguments = replaced(arguments)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
        return subprocess.run(
            [sys.executable, str(ROOT / "scripts" / script), *arguments],
            cwd=tmp_path,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=500,
            stdin=subprocess.DEVNULL,
        )

    return run


@pytest.fixture(scope="session")
def tiny_overrides(text_files: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that make a run of a fraction of a second on forty small files."""
    return [
        "data=local",
        f"data.paths=[{text_files}]",
        "data.name=tiny",
        f"data.root={tmp_path_factory.mktemp('data')}",
        "model=demo",
        "model.d_model=16",
        "model.n_layers=1",
        "data.val_fraction=0.1",
        "data.max_epochs=1e6",
        "seq_len.seq_len=32",
        "recipe.batch_tokens=256",
        "evaluation.n_tokens=512",
        "budget.min_steps=5",
        "budget.flops=1e9",
        "budget.tolerance=0.02",
        "tracking.wandb=disabled",
    ]
