"""scripts/bench.py times real parts, stage by stage, and says on what machine."""

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


@pytest.mark.slow
def test_the_pool_bench_does_the_same_work_warm_and_cold_and_says_how_it_came_about(
    tmp_path: Path,
) -> None:
    out = tmp_path / "bench.json"
    done = bench("what=pool", "repeats=1", "cells=2", "steps=2", f"out={out}")
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text(encoding="utf-8"))
    stages = document["median"]
    ratio = stages["a process each"] / stages["warm workers"]
    assert document["facts"]["cold over warm"] == pytest.approx(ratio)
    assert document["command"].startswith("python scripts/bench.py what=pool repeats=1 cells=2")
    assert {"cpu", "load", "torch", "code"} <= set(document["machine"])


@pytest.mark.slow
def test_the_stacked_bench_times_the_same_runs_twice(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    done = bench("what=stacked", "repeats=1", "replicas=2", "width=16", "steps=5", f"out={out}")
    assert done.returncode == 0, done.stderr  # other losses on one side would be an error
    document = json.loads(out.read_text(encoding="utf-8"))
    stages = document["median"]
    ratio = stages["one after another"] / stages["stacked"]
    assert document["facts"]["one after another over stacked"] == pytest.approx(ratio)


@pytest.mark.parametrize("override", ["what=nothing", "colour=red", "repeats=many"])
def test_a_bench_refuses_what_it_does_not_know(override: str) -> None:
    done = bench(override)
    assert done.returncode == 2
    assert done.stderr.startswith("bench.py: ")
