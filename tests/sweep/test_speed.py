"""The time of a cell, learnt from runs of a planted speed."""

import dataclasses
import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from llmtrain.corpus.shards import open_corpus
from llmtrain.spec.record import RunRecord, write_record
from llmtrain.spec.settings import TrainConfig
from llmtrain.sweep.speed import find_records, learn_speed, makespan
from llmtrain.training.loop import train

FIXED_S, RATE = 0.5, 3e9


def planted(
    record: RunRecord, d_model: int, flops: float, *, share: float = 1.0, **changes: Any
) -> RunRecord:
    """A run of a machine that does RATE * d_model^0.8 FLOP/s after half a second.

    `share`: what a branch executes of its FLOPs.
    """
    seconds = {"setup": FIXED_S, "train": share * flops / (RATE * d_model**0.8)}
    counted = {
        "flops": {"full_attention": flops},
        "flops_convention": "full_attention",
        "flops_spent": share * flops,
    }
    return dataclasses.replace(record, d_model=d_model, seconds=seconds, **counted, **changes)


@pytest.fixture(scope="module")
def finished(
    make: Callable[..., TrainConfig],
    text_files: Path,
    tiny_corpus_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> RunRecord:
    """The record of a real run, whose machine and layout the planted ones take."""
    data = {"data.paths": [str(text_files)], "data.root": str(tiny_corpus_dir.parent)}
    config = make(data | {"runs_root": str(tmp_path_factory.mktemp("runs"))})
    return train(config, open_corpus(tiny_corpus_dir))


@pytest.fixture
def runs(finished: RunRecord) -> list[RunRecord]:
    grid = product((16, 32, 64, 128), (1e10, 1e11))
    return [planted(finished, width, flops) for width, flops in grid]


def test_a_planted_speed_is_found_and_forecast(
    runs: list[RunRecord], make: Callable[..., TrainConfig]
) -> None:
    speed = learn_speed(runs, make().runtime)
    assert speed is not None
    assert speed.slope == pytest.approx(0.8)
    assert speed.seconds_of(7e11, 256) == pytest.approx(FIXED_S + 7e11 / (RATE * 256**0.8))
    assert speed.error == pytest.approx(0.0, abs=1e-9)


def test_branches_count_what_they_executed_themselves(
    runs: list[RunRecord], make: Callable[..., TrainConfig]
) -> None:
    branches = [
        planted(record, record.d_model, record.flops["full_attention"], share=0.2)
        for record in runs
    ]
    speed = learn_speed([*runs, *branches], make().runtime)
    assert speed is not None
    assert speed.seconds_of(7e11, 256) == pytest.approx(FIXED_S + 7e11 / (RATE * 256**0.8))
    assert speed.error == pytest.approx(0.0, abs=1e-9)


def test_other_precisions_and_too_few_runs_tell_nothing(
    runs: list[RunRecord], make: Callable[..., TrainConfig]
) -> None:
    runtime = make().runtime
    assert learn_speed(runs[:2], runtime) is None
    assert learn_speed([dataclasses.replace(r, dtype="bfloat16") for r in runs], runtime) is None
    assert learn_speed(runs, dataclasses.replace(runtime, device="cuda")) is None


def test_the_machine_of_most_runs_is_taken(
    runs: list[RunRecord], make: Callable[..., TrainConfig]
) -> None:
    gpu = {"device": "cuda", "gpu": "NVIDIA H200", "n_devices": "1"}
    fast = [planted(r, r.d_model, 1e12, hardware=gpu) for r in runs[:3]]
    speed = learn_speed([*runs, *fast], make().runtime)
    assert speed is not None
    assert speed.n_runs == len(runs)
    alone = learn_speed([*runs, *fast], dataclasses.replace(make().runtime, device="cuda"))
    assert alone is not None
    assert alone.machine == "NVIDIA H200, float32"


def test_records_are_found_and_a_damaged_one_has_no_say(
    runs: list[RunRecord], tmp_path: Path
) -> None:
    for k, record in enumerate(runs):
        folder = tmp_path / "sweep" / f"run{k}"
        folder.mkdir(parents=True)
        write_record(folder, record)
    (tmp_path / "sweep" / "run0" / "record.json").write_text("{", encoding="utf-8")
    assert len(find_records(tmp_path)) == len(runs) - 1
    assert find_records(tmp_path / "absent") == []


def test_the_longest_first_pool_by_hand() -> None:
    assert makespan([5, 4, 3, 3, 3], 2) == 10  # 5+3 | 4+3, then the last 3 on the slot free at 7
    assert makespan([1.0], 8) == 1.0
    assert makespan([], 2) == 0.0
    assert math.isclose(makespan([1.0] * 7, 2), 4.0)
