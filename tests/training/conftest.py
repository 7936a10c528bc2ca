import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llmtrain.spec.config import ModelConfig

Killed = Callable[..., list[list[dict[str, Any]]]]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums over threads differ in their last bits; one thread makes equal runs bitwise equal."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture
def tiny_model_config() -> ModelConfig:
    return ModelConfig(
        d_model=32,
        n_layers=2,
        d_head=16,
        ff_ratio=4.0,
        ff_multiple=8,
        activation="relu2",
        norm="rmsnorm",
        position="rope",
        rope_base=10000.0,
        qk_norm=False,
        tied_head=False,
        bias=False,
        dropout=0.0,
        init_std=0.02,
        init="fan_in",
        parametrization="standard",
        base_d_model=32,
    )


@pytest.fixture
def killed(tiny_corpus_dir: Path, root: Path, tmp_path: Path) -> Killed:
    """Return a function that trains cases in children of kill_worker.py, and kills them there.

    A case has the keys that the worker names, but for those that are the same for all. The answer
    has a list per case, with an item per run: what differs from one left alone, and its lives.
    """

    def run(*cases: dict[str, Any]) -> list[list[dict[str, Any]]]:
        common = {"corpus": str(tiny_corpus_dir), "runs": [], "changes": None, "off": None}
        asked = [common | case for case in cases]
        for case in asked:
            case["configs"] = [dataclasses.asdict(config) for config in case["configs"]]
        worker = Path(__file__).with_name("kill_worker.py")
        done = subprocess.run(
            [sys.executable, str(worker), str(tmp_path / "killed")],
            input=json.dumps(asked),
            env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
            check=False,
            capture_output=True,
            text=True,
            timeout=880,
        )
        assert done.returncode == 0, done.stderr
        answer: list[list[dict[str, Any]]] = json.loads(done.stdout.splitlines()[-1])
        return answer

    return run
