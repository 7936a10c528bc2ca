"""scripts/bench.py times the stages of a real report and says on what machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench.py"


def bench(*overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *overrides], capture_output=True, text=True, check=False
    )


def test_a_bench_prints_its_stages_and_writes_them_with_the_machine(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    done = bench("what=analysis", "repeats=1", "draws=20", f"out={out}")
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text(encoding="utf-8"))
    stages = document["median"]
    assert stages["all"] == pytest.approx(
        sum(value for name, value in stages.items() if name != "all")
    )
    assert {"numpy", "scipy", "cores"} <= set(document["machine"])
    assert f"{stages['all']:.2f}" in done.stdout


@pytest.mark.parametrize("override", ["what=nothing", "colour=red", "repeats=many"])
def test_a_bench_refuses_what_it_does_not_know(override: str) -> None:
    done = bench(override)
    assert done.returncode == 2
    assert done.stderr.startswith("bench.py: ")
