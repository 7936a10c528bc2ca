"""A team's runs come back from wandb whole, under the guards of local records."""

import dataclasses
import json
from pathlib import Path

import pytest
from stored_run import StoredRun
from test_mirror import inspect, items
from wandb_server import ENTITY

from llmtrain.board.fetched import FetchedRun, lay_down, record_of
from llmtrain.board.offline import offline_files, read_offline
from llmtrain.board.pull import fetch_group
from llmtrain.board.source import group_of, local_runs
from llmtrain.corpus.shards import open_corpus
from llmtrain.scaling.load import load_runs
from llmtrain.scaling.training_curves import load_curves
from llmtrain.spec.bill import PLAIN
from llmtrain.spec.errors import ConfigError, MismatchError
from llmtrain.spec.record import read_record
from llmtrain.spec.rundir import run_directory
from llmtrain.training.loop import train
from llmtrain.training.summary import wandb_summary

SOURCE = f"wandb:{ENTITY}/p/test"


@pytest.fixture(scope="module")
def trained(make, tiny_corpus_dir, tmp_path_factory):
    """A finished run: its configuration, record and folder, with its wandb copy offline."""
    root = tmp_path_factory.mktemp("trained")
    config = make({"runs_root": str(root), "tracking.wandb": "offline", "runtime.peak_tflops": 0.1})
    record = train(config, open_corpus(tiny_corpus_dir))
    return config, record, run_directory(config)


def rows_of(directory: Path) -> list[dict]:
    """Return the rows of metrics.jsonl, those of one step as one, as wandb keeps them."""
    steps: dict[int, dict] = {}
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        steps.setdefault(row["step"], {}).update(row)
    return list(steps.values())


def stored(name: str, record, rows, **changes) -> StoredRun:
    history = [row | {"_step": row["step"], "_runtime": 0.1} for row in rows]
    summary = wandb_summary(record, PLAIN) | {"step": record.n_steps, "_wandb": {"runtime": 1}}
    run = StoredRun(name, "p", "test", "train", name, "finished", summary=summary, history=history)
    return dataclasses.replace(run, **changes)


def test_a_group_comes_back_whole_and_every_other_run_has_its_reason(
    server, trained, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    _, record, directory = trained
    rows = rows_of(directory)
    twin = dataclasses.replace(record, run_id="twin", seed=1, val_loss=record.val_loss)
    summary = wandb_summary(record, PLAIN)
    nan = summary | {"val_loss": "NaN", "run_id": "nan"}
    short = {key: value for key, value in summary.items() if key != "val_bpb"}
    found = server(page=2)
    for run in (
        stored("live", record, rows),
        stored("parquet", twin, rows, exported=len(rows) - 3),
        stored("running", record, rows[:3], state="running"),
        stored("crashed", record, rows[:3], state="crashed"),
        stored("killed", record, rows[:3], state="killed"),
        stored("failed", record, rows[:3], state="failed"),
        stored("nan", record, rows, summary=nan),
        stored("short", record, rows, summary=short | {"run_id": "short"}),
        stored("gap", record, rows[:-1], summary=summary | {"run_id": "gap"}),
        stored("again", record, rows),
        stored("foreign", record, rows, summary={"loss": 3.0}),
        stored("the-law", record, [], job_type="analysis"),
        stored("elsewhere", record, rows, group="other"),
    ):
        found.runs[run.name] = run
    folder = local_runs(SOURCE)
    assert folder == Path("runs/wandb") / ENTITY / "p" / "test"
    runs = load_runs(folder)
    assert set(runs.run_id) == {record.run_id, "twin"}
    own = next(r for r in runs.records if r.run_id == record.run_id)
    assert dataclasses.replace(own, metrics_sha256=record.metrics_sha256) == record
    reasons = {e.run_id: e.reason for e in runs.exclusions}
    for name in ("crashed", "killed", "failed"):
        assert any(reason == f"wandb state {name}" for reason in reasons.values()), reasons
    assert "val_loss" in reasons["nan"]
    assert "val_bpb" in reasons["short"]
    n_steps = record.n_steps
    assert reasons["gap"] == f"history ends at step {rows[-2]['step']} of {n_steps}"
    assert any("second run of this run_id" in reason for reason in reasons.values())
    assert reasons["foreign"] == "its summary holds no record of llmtrain"
    assert len(runs) + len(runs.exclusions) == 11
    for name in (record.run_id, "twin"):
        lines = (folder / name / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == rows
    curves = load_curves(folder, runs)
    assert curves is not None
    assert len(curves.loss) == 2 * sum("train/loss" in row for row in rows)
    assert "RunHistorySampled" not in " ".join(found.operations)
    assert found.operations.count("Runs") == 6
    assert found.unknown == []
    assert load_runs(local_runs(SOURCE)).sha256 == runs.sha256  # and again


@pytest.mark.parametrize(
    ("behaviour", "source", "message"),
    [
        ("401", SOURCE, "401|check the names and `wandb login`"),
        ("well", f"wandb:{ENTITY}/absent/test", "Could not find project absent"),
        ("well", f"wandb:{ENTITY}/p/empty", "holds no training runs"),
        ("well", "wandb:p/test", "write runs=wandb:ENTITY/PROJECT/GROUP"),
        ("well", "wandb:../p/test", "write runs=wandb:ENTITY/PROJECT/GROUP"),
    ],
)
def test_a_wrong_name_or_key_is_one_line(
    server, trained, tmp_path, monkeypatch, behaviour, source, message
):
    monkeypatch.chdir(tmp_path)
    _, record, directory = trained
    server(behaviour).runs["a"] = stored("a", record, rows_of(directory))
    with pytest.raises(ConfigError, match=message) as caught:
        local_runs(source)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_without_a_key_nothing_is_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="needs a key: run `wandb login` or set WANDB_API_KEY"):
        list(fetch_group("team", "p", "g"))


def test_an_offline_file_reads_as_wandbs_own_reader_reads_it(trained):
    _, record, directory = trained
    (path,) = offline_files(directory.parent)
    run = read_offline(path)
    found = inspect(directory)
    head = next(r["run"] for r in found if r["type"] == "run")
    history = [items(r["history"]["item"]) for r in found if r["type"] == "history"]
    assert list(run.rows) == history == rows_of(directory)
    assert (run.wandb_id, run.group, run.job_type) == (head["run_id"], "test", "train")
    assert run.state == "finished"
    assert run.config["model/d_model"] == 32
    assert run.summary["params/total"] == record.params["total"]


def test_every_cut_of_an_offline_file_reads_without_an_error(trained, tmp_path):
    _, _, directory = trained
    (path,) = offline_files(directory)
    data = path.read_bytes()
    cut = tmp_path / "run-x.wandb"
    counts = []
    for length in range(len(data), 0, -997):
        cut.write_bytes(data[:length])
        try:
            run = read_offline(cut)
        except ConfigError:
            counts.append(-1)
            continue
        counts.append(len(run.rows))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 20
    assert counts[-1] == -1


def test_a_folder_of_offline_runs_is_a_source(trained, tmp_path, monkeypatch):
    _, record, directory = trained
    monkeypatch.chdir(tmp_path)
    box = tmp_path / "from-the-box"
    box.mkdir()
    (source,) = directory.glob("wandb/offline-run-*")
    (box / source.name).symlink_to(source)
    folder = local_runs(str(box))
    runs = load_runs(folder)
    (own,) = runs.records
    assert dataclasses.replace(own, metrics_sha256=record.metrics_sha256) == record
    assert read_record(directory) == record


def test_a_folder_of_records_is_read_as_it_is(trained, tmp_path, monkeypatch):
    _, _, directory = trained
    monkeypatch.chdir(tmp_path)
    assert local_runs(str(directory.parent)) == directory.parent
    assert group_of(str(directory.parent)) is None
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_other_origin_is_never_replaced(tmp_path):
    (tmp_path / "precious").mkdir()
    with pytest.raises(ConfigError, match="was not fetched from wandb"):
        lay_down([], tmp_path)


@pytest.mark.parametrize("name", ["../../etc", "a/b", ".", "", "x" * 300])
def test_a_name_from_the_server_stays_in_the_folder(tmp_path, name):
    run = FetchedRun(
        wandb_id="w/../x",
        name=name,
        state="crashed",
        group="g",
        job_type="train",
        config={},
        summary={"run_id": name},
        rows=(),
    )
    folder = lay_down([run, run], tmp_path / "f")
    made = [path for path in folder.iterdir() if path.is_dir()]
    assert 1 <= len(made) <= 2
    assert {path.name for path in tmp_path.iterdir()} == {"f"}


def test_a_history_that_ends_on_another_loss_is_refused(trained):
    _, record, directory = trained
    rows = rows_of(directory)
    run = FetchedRun(
        wandb_id="a",
        name="a",
        state="finished",
        group="g",
        job_type="train",
        config={},
        summary=wandb_summary(record, PLAIN),
        rows=(*rows[:-1], rows[-1] | {"val/loss": 9.0}),
    )
    with pytest.raises(MismatchError, match=r"history ends with val/loss 9\.0"):
        record_of(run, "x")
