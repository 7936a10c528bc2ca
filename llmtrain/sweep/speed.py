"""How long a cell will take, from the runs that this machine has finished."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmtrain.spec.bill import own_share
from llmtrain.spec.errors import LlmtrainError
from llmtrain.spec.plan import RunPlan
from llmtrain.spec.record import RECORD_FILE, RunRecord, read_record
from llmtrain.spec.settings import RuntimeConfig, TrainConfig
from llmtrain.spec.words import plural

MIN_RUNS = 3
HELD_OUT = 200
"""Runs left out in turn for the error, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """Seconds of a run on one kind of machine: a fixed part, and FLOPs over a rate.

    The rate is exp(intercept) * d_model^slope FLOP/s (full_attention): wide models use a device
    better.
    """

    machine: str
    hardware: Mapping[str, str]
    """Of one of the runs it was learnt from."""
    n_runs: int
    fixed_s: float
    intercept: float
    slope: float
    error: float | None
    """Median of |predicted / measured - 1| over runs left out in turn; null below four runs."""

    def seconds(self, plan: RunPlan, d_model: int) -> float:
        """Return the expected wall seconds of a planned run of this width."""
        return self.seconds_of(plan.flops["full_attention"], d_model)

    def seconds_of(self, flops: float, d_model: int) -> float:
        """Return the expected wall seconds of `flops` (full_attention) at this width."""
        return self.fixed_s + flops / math.exp(self.intercept + self.slope * math.log(d_model))


def assumed_speed(config: TrainConfig) -> Speed | None:
    """Return the speed that bill.assumed_mfu and runtime.peak_tflops say; None without both."""
    mfu, peak = config.bill.assumed_mfu, config.runtime.peak_tflops
    if mfu is None or peak is None:
        return None
    return Speed(
        machine=f"a device of {peak:g} TFLOP/s at an assumed MFU of {mfu:g}",
        hardware={"gpu": "unknown"},
        n_runs=0,
        fixed_s=0.0,
        intercept=math.log(mfu * peak * 1e12),
        slope=0.0,
        error=None,
    )


def own_flops(record: RunRecord) -> float:
    """Return the FLOPs (full_attention) that a run executed itself: of a branch, its cooldown's."""
    return record.flops["full_attention"] * own_share(record)


def machine_of(record: RunRecord) -> str:
    """Return what decides the speed of a run besides its shape, in words."""
    facts = record.hardware
    threads = plural(int(facts.get("threads", "1")), "thread")
    device = facts.get("gpu") or f"{facts.get('cpu', 'CPU')}, {threads}"
    many = "" if facts.get("n_devices", "1") == "1" else f" x {facts['n_devices']}"
    return f"{device}{many}, {record.dtype}"


def find_records(runs_root: Path) -> list[RunRecord]:
    """Return the readable records of all sweeps under `runs_root`."""
    found = []
    for path in sorted(runs_root.glob(f"*/*/{RECORD_FILE}")):
        try:
            record = read_record(path.parent)
        except LlmtrainError:  # another version's or damaged: it has no say about speed
            continue
        if record is not None and record.seconds.get("train", 0.0) > 0.0:
            found.append(record)
    return found


def learn_speed(records: Sequence[RunRecord], runtime: RuntimeConfig) -> Speed | None:
    """Return the speed of the machine that most of `records` of this precision ran on.

    None for fewer than three runs: a guess would look like a measurement.
    """
    by_machine: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        on_gpu = "gpu" in record.hardware
        wanted = runtime.device == "auto" or on_gpu == (runtime.device == "cuda")
        threads = on_gpu or record.hardware.get("threads") == str(runtime.n_threads)
        if record.dtype == runtime.dtype and wanted and threads:
            by_machine[machine_of(record)].append(record)
    if not by_machine:
        return None
    machine, runs = max(by_machine.items(), key=lambda item: (len(item[1]), item[0]))
    if len(runs) < MIN_RUNS:
        return None
    fixed, intercept, slope = _fit(runs)
    return Speed(
        machine=machine,
        hardware=runs[0].hardware,
        n_runs=len(runs),
        fixed_s=fixed,
        intercept=intercept,
        slope=slope,
        error=_error(runs[:HELD_OUT]),
    )


def _fit(runs: Sequence[RunRecord]) -> tuple[float, float, float]:
    """Return the median fixed part, and the least-squares line of ln rate over ln d_model."""
    fixed = statistics.median(sum(r.seconds.values()) - r.seconds["train"] for r in runs)
    x = [math.log(r.d_model) for r in runs]
    y = [math.log(own_flops(r) / r.seconds["train"]) for r in runs]
    if len(set(x)) < MIN_RUNS:
        return fixed, statistics.median(y), 0.0
    slope, intercept = statistics.linear_regression(x, y)
    return fixed, intercept, slope


def _error(runs: Sequence[RunRecord]) -> float | None:
    if len(runs) <= MIN_RUNS:
        return None
    errors = []
    for k, left_out in enumerate(runs):
        fixed, intercept, slope = _fit([*runs[:k], *runs[k + 1 :]])
        rate = math.exp(intercept + slope * math.log(left_out.d_model))
        predicted = fixed + own_flops(left_out) / rate
        errors.append(abs(predicted / sum(left_out.seconds.values()) - 1.0))
    return statistics.median(errors)


def makespan(seconds: Iterable[float], n_slots: int) -> float:
    """Return the wall seconds of a pool that takes the longest cell first on `n_slots` slots."""
    ends = [0.0] * n_slots
    for each in sorted(seconds, reverse=True):
        slot = ends.index(min(ends))
        ends[slot] += each
    return max(ends)
