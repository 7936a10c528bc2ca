"""The analysis: load, fits and bootstrap, figures and report of 250 planted runs."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from edge import compose

from benches import Bench, Seconds
from llmtrain.scaling.analysis import analyze
from llmtrain.scaling.config import AnalyzeConfig
from llmtrain.scaling.law import LossLaw
from llmtrain.scaling.load import load_runs
from llmtrain.scaling.report import write_report
from llmtrain.spec.build import build

BUDGETS, SIZES, SEEDS = 5, 10, 5


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


def time_analysis(keys: Mapping[str, int]) -> Seconds:
    """Return the seconds of each stage of one full report."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "runs.csv"
        plant_runs(table)
        overrides = [f"runs={table}", f"bootstrap={keys['draws']}"]
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


BENCH = Bench(keys={"draws": "1000"}, run=time_analysis, packages=("numpy", "scipy", "matplotlib"))
