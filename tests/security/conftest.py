import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

STORM = Path(__file__).with_name("storm.py")


@pytest.fixture
def storm(tmp_path: Path) -> Callable[[Sequence[Sequence[str]]], list[dict[str, Any]]]:
    """Run command lines of train.py in one process in an empty folder; it must stay empty."""

    def run(command_lines: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        folder = tmp_path / "empty"
        folder.mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, str(STORM)],
            input=json.dumps([list(line) for line in command_lines]),
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["heavy"] == []
        assert list(folder.iterdir()) == []
        answers: list[dict[str, Any]] = found["answers"]
        return answers

    return run
