"""What must never enter a fit, and what is said where runs of different code are fitted."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llmtrain.scaling.analysis import analyze
from llmtrain.scaling.config import AnalyzeConfig
from llmtrain.scaling.load import load_runs
from llmtrain.spec.record import RunRecord

Config = Callable[..., AnalyzeConfig]
Sweep = Callable[..., Path]


def test_runs_with_skipped_updates_and_spikes_stay_and_are_flagged(
    planted_sweep: Sweep, analyze_config: Config
) -> None:
    def change(record: RunRecord) -> RunRecord:
        hit = record.d_model == 64
        return dataclasses.replace(record, n_skipped=2 * hit, n_spikes=3 * hit)

    runs = load_runs(planted_sweep(change=change))
    assert len(runs) == 36
    (group,) = analyze(analyze_config(bootstrap=50), runs).groups
    messages = [(f.level, f.message) for f in group.findings if f.code in ("skipped", "spikes")]
    assert messages == [
        (
            "warning",
            "8 runs skipped updates that were not finite, up to 2 % of their steps; their tokens "
            "count in full",
        ),
        ("note", "8 runs had spikes in the training loss, 24 in all"),
    ]


def test_runs_of_two_environments_are_flagged(planted_sweep: Sweep, analyze_config: Config) -> None:
    def change(record):  # type: ignore[no-untyped-def]
        other = record.d_model == 64
        return dataclasses.replace(
            record,
            code_id="abc+dirty" if other else "abc",
            versions=record.versions | {"torch": "2.9" if other else "2.10"},
        )

    runs = load_runs(planted_sweep(change=change))
    (group,) = analyze(analyze_config(bootstrap=50), runs).groups
    messages = [f.message for f in group.findings if f.code == "code"]
    assert messages == [
        "runs of 2 states of the code are fitted together: abc (28 runs), abc+dirty (8 runs)",
        "runs under 2 versions of torch: 2.10 (28 runs), 2.9 (8 runs)",
    ]


def test_none_of_five_hundred_bad_rows_and_runs_is_admitted(
    planted_sweep: Sweep, tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    root = planted_sweep((1e11,))
    template = json.loads(next(root.glob("*/record.json")).read_text())
    faults: list[Callable[[Path, dict[str, object]], object]] = [
        lambda f, r: (f / "metrics.jsonl").write_text("{}"),
        lambda f, r: r.update(val_loss=float("nan")),
        lambda f, r: r.update(val_loss=float("inf")),
        lambda f, r: r.update(val_loss=-1.0),
        lambda f, r: r.update(val_loss="low"),
        lambda f, r: r.update(schema=99),
        lambda f, r: r.pop("n_tokens"),
        lambda f, r: r.update(annealed=False),
        lambda f, r: r.clear(),
        lambda f, r: (f / "state.json").write_text('{"state": "running"}'),
    ]
    for i in range(250):
        folder = root / f"bad{i}"
        folder.mkdir()
        (folder / "metrics.jsonl").write_text("")
        record = dict(template, run_id=f"bad{i}")
        fault = int(rng.integers(len(faults)))
        faults[fault](folder, record)
        if fault < len(faults) - 1:
            (folder / "record.json").write_text(json.dumps(record))
    runs = load_runs(root)
    assert len(runs) == 9
    assert {item.run_id for item in runs.exclusions} == {f"bad{i}" for i in range(250)}
    bad = [
        ("failed", "true"), ("running", "true"), ("diverged", "true"), ("", "true"),
        ("killed", "false"), ("done", "false"), ("done", ""),
    ]  # fmt: skip
    lines = ["run_id,params,tokens,loss,status,annealed"]
    lines += [f"ok{i},{1e8 + i},2e9,3.1,done,true" for i in range(45)]
    for i, kind in enumerate(rng.integers(len(bad), size=250)):
        lines.append(f"bad{i},{2e8 + i},2e9,{rng.uniform(2, 9)},{','.join(bad[kind])}")
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    table = load_runs(path)
    assert len(table) == 45
    assert {item.run_id for item in table.exclusions} == {f"bad{i}" for i in range(250)}
    assert all(item.reason for item in (*runs.exclusions, *table.exclusions))
