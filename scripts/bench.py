"""Time a part of llmtrain on this machine.

  python scripts/bench.py what=analysis
  python scripts/bench.py what=analysis repeats=5 draws=1000 out=bench.json

`what` is one of: analysis (load, fits and bootstrap, figures and report of 250 planted runs),
tracking (one run of a minute with and without wandb).
Prints the median of the repeats, each stage by itself; `out` gets the same as JSON with hardware
and versions.
"""

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
from bench_tracking import bench_tracking
from edge import check_overrides, compose, run_edge
from rich.console import Console
from rich.table import Table

from llmtrain import __version__
from llmtrain.scaling.analysis import analyze
from llmtrain.scaling.config import AnalyzeConfig
from llmtrain.scaling.law import LossLaw
from llmtrain.scaling.load import load_runs
from llmtrain.scaling.report import write_report
from llmtrain.spec.build import build
from llmtrain.spec.errors import ConfigError

Seconds = dict[str, float]
BUDGETS, SIZES, SEEDS = 5, 10, 5
DEFAULTS = {"what": "analysis", "repeats": "3", "draws": "1000", "out": ""}


def plant_runs(path: Path) -> None:
    """Write a CSV of 250 runs on a known law with 0.3 % of noise."""
    law = LossLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
    rng = np.random.default_rng(0)
    lines = ["run_id,params,tokens,flops,loss,seed"]
    for C in np.geomspace(1e18, 1e20, BUDGETS):
        for N in float(law.n_opt(C)) * np.geomspace(1 / 6, 6, SIZES):
            for seed in range(SEEDS):
                D = C / 6 / N
                loss = float(law.loss(float(N), float(D))) * np.exp(0.003 * rng.standard_normal())
                lines.append(f"C{C:.3g}-N{N:.3g}-s{seed},{N},{D},{C},{loss},{seed}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def bench_analysis(draws: int) -> Seconds:
    """Return the seconds of each stage of one full report."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "runs.csv"
        plant_runs(table)
        overrides = [f"runs={table}", f"bootstrap={draws}"]
        config = build(AnalyzeConfig, compose("analyze", overrides))
        clock = [time.perf_counter()]
        runs = load_runs(table)
        clock.append(time.perf_counter())
        analysis = analyze(config, runs)
        clock.append(time.perf_counter())
        write_report(analysis, Path(folder) / "report", overrides)
        clock.append(time.perf_counter())
    names = ("load", "fits and bootstrap", "figures and report")
    stages = dict(zip(names, np.diff(clock), strict=True))
    return {**{name: float(value) for name, value in stages.items()}, "all": clock[-1] - clock[0]}


BENCHES: dict[str, Callable[[int], Seconds]] = {
    "analysis": bench_analysis,
    "tracking": bench_tracking,
}


def machine() -> dict[str, str]:
    """Return hardware and versions that a figure depends on."""
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": version("scipy"),
        "matplotlib": version("matplotlib"),
        "llmtrain": __version__,
    }


def main(overrides: list[str]) -> None:
    """Run one bench, print its table, write its JSON."""
    check_overrides(overrides)
    given = DEFAULTS | dict(override.split("=", 1) for override in overrides)
    unknown = sorted(set(given) - set(DEFAULTS))
    if unknown or given["what"] not in BENCHES:
        raise ConfigError(
            f"bench.py takes {', '.join(DEFAULTS)}; what is one of {', '.join(BENCHES)}"
        )
    if not (given["repeats"].isdecimal() and given["draws"].isdecimal()):
        raise ConfigError("repeats and draws are whole numbers, as in repeats=3 draws=1000")
    repeats, draws = max(1, int(given["repeats"])), int(given["draws"])
    found = [BENCHES[given["what"]](draws) for _ in range(repeats)]
    seconds = {name: median(run[name] for run in found) for name in found[0]}
    shown = Table(title=f"{given['what']}: median of {repeats}", box=None, title_justify="left")
    for name in ("stage", "seconds"):
        shown.add_column(name)
    for name, value in seconds.items():
        shown.add_row(name, f"{value:.2f}")
    Console(highlight=False).print(shown)
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    if given["out"]:
        document = {"what": given["what"], "draws": draws, "runs": found, "median": seconds}
        text = json.dumps(document | {"machine": machine()}, indent=1)
        Path(given["out"]).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_edge(main)
