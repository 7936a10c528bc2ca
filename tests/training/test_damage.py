"""R5, S4: a checkpoint that is not what was saved is never loaded, and no clock chooses one."""

import hashlib
import json
import os
import random
import shutil
import time
from collections import Counter

import pytest
from damage import cut, flip, zero
from edge import guarded
from stops import Stop

from llmtrain.corpus.shards import open_corpus
from llmtrain.spec.errors import CheckpointError, InterruptedRunError
from llmtrain.spec.plan import run_id
from llmtrain.spec.rundir import run_directory
from llmtrain.training.checkpoint import load_checkpoint
from llmtrain.training.loop import train

FILES = ("tensors.safetensors", "state.json", "manifest.json")
SMALL = {"model.d_model": 16, "model.n_layers": 1, "checkpoint.every_steps": 2}


class Saved:
    """A folder with the checkpoints of steps 6 and 8 of one run, which can be put back."""

    def __init__(self, config, corpus_dir):
        self.config, self.run_id = config, run_id(config)
        corpus = open_corpus(corpus_dir)
        with pytest.raises(InterruptedRunError):
            train(config, corpus, on_progress=Stop(8))
        self.folder = run_directory(config) / "checkpoints"
        self.older, self.newer = sorted(self.folder.iterdir())
        assert (self.older.name[-1], self.newer.name[-1]) == ("6", "8")
        self.sound = {p: p.read_bytes() for p in self.folder.rglob("*") if p.is_file()}

    def put_back(self):
        shutil.rmtree(self.folder)
        for path, content in self.sound.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def is_damaged(self, path):
        return not path.is_file() or path.read_bytes() != self.sound[path]

    def load(self):
        """Return the step that is loaded, and the lines about the others."""
        state, lines = load_checkpoint(self.folder, run_id=self.run_id)
        return state["session"]["step"], lines


@pytest.fixture(scope="module")
def saved(make, tiny_corpus_dir, tmp_path_factory):
    changes = SMALL | {"runs_root": str(tmp_path_factory.mktemp("saved")), "tracking.points": 1000}
    return Saved(make(changes), tiny_corpus_dir)


@pytest.fixture(autouse=True)
def _sound_again(saved):
    yield
    saved.put_back()


def assert_found(saved, *names):
    """Assert that the newest is passed over for one of its files `names`, in one line."""
    step, (line,) = saved.load()
    assert step == 6
    assert "\n" not in line
    assert line.startswith(f"{saved.newer}: ")
    assert line.endswith("; passed over")
    assert any(name in line for name in names), line


@pytest.mark.parametrize(
    ("flips", "cuts", "zeros"),
    [(140, 30, 30), pytest.param(1000, 200, 200, marks=pytest.mark.slow)],
)
def test_no_damage_is_loaded_and_the_older_one_is(saved, flips, cuts, zeros):
    rng = random.Random(flips)
    wanted = Counter({flip: flips, cut: cuts, zero: zeros})
    found = Counter()
    while wanted.total():
        damage = rng.choice(list(+wanted))
        path = saved.newer / rng.choice(FILES)
        damage(path, rng)
        if saved.is_damaged(path):
            wanted[damage] -= 1
            wanted = +wanted
            found[path.name] += 1
            assert_found(saved, path.name)
            other = saved.older / path.name
            flip(other, rng)
            with pytest.raises(CheckpointError, match="no sound checkpoint") as caught:
                saved.load()
            assert caught.value.exit_code == 3
            other.write_bytes(saved.sound[other])
        path.write_bytes(saved.sound[path])
    assert found.total() == flips + cuts + zeros
    assert min(found.values()) > found.total() / 6  # every file had its share


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["deleted", "emptied", "swapped", "made a folder"])
def test_a_file_that_is_gone_or_anothers_is_named(saved, name, how):
    path, other = saved.newer / name, saved.older / name
    path.unlink()
    if how == "emptied":
        path.touch()
    elif how == "swapped":
        path.write_bytes(other.read_bytes())
        other.write_bytes(saved.sound[path])
        with pytest.raises(CheckpointError, match=name):
            saved.load()
        other.write_bytes(saved.sound[other])
    elif how == "made a folder":
        path.mkdir()
    assert_found(saved, name)


def edited(path, **changes):
    """Change entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_two_checkpoints_that_changed_places_are_both_refused(saved):
    aside = saved.folder / "aside"
    saved.newer.rename(aside)
    saved.older.rename(saved.newer)
    aside.rename(saved.older)
    with pytest.raises(CheckpointError, match=r"manifest\.json is of step 6"):
        saved.load()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"run_id": "another"}, "belongs to run 'another', as its manifest.json says"),
        ({"step": 9}, "manifest.json is of step 9"),
        ({"step": "8"}, "manifest.json"),
        ({"step": None}, "manifest.json"),
        ({"files": {}}, "manifest.json"),
        ({"files": None}, "manifest.json"),
        ({"run_id": "x\ny" * 100_000}, "manifest.json"),
    ],
)
def test_an_edited_manifest_is_refused(saved, change, reason):
    edited(saved.newer / "manifest.json", **change)
    assert_found(saved, reason)


@pytest.mark.parametrize("change", [{"run_id": "another"}, {"step": 6}, {"dict": 5}, {"format": 1}])
def test_a_state_of_elsewhere_is_refused_though_all_hashes_agree(saved, change):
    state, manifest = saved.newer / "state.json", saved.newer / "manifest.json"
    edited(state, **change)
    content = state.read_bytes()
    files = json.loads(manifest.read_text())["files"]
    files["state.json"] = {
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    edited(manifest, files=files)
    assert_found(saved, "state.json")


def test_a_copy_under_a_later_name_is_refused(saved):
    later = saved.folder / "step-000000012"
    shutil.copytree(saved.newer, later)
    edited(later / "manifest.json", step=12)
    step, (line,) = saved.load()
    assert step == 8
    assert "step-000000012: state.json" in line


def test_when_all_are_bad_the_script_leaves_with_3_and_trains_nothing(
    saved, tiny_corpus_dir, capfd
):
    for path in (saved.older, saved.newer):
        os.truncate(path / "tensors.safetensors", 1000)
    metrics = (run_directory(saved.config) / "metrics.jsonl").read_bytes()
    code = guarded(lambda: train(saved.config, open_corpus(tiny_corpus_dir)) and 0)
    (line,) = capfd.readouterr().err.splitlines()
    assert code == 3
    assert "step-000000008: tensors.safetensors does not match its hash" in line
    assert (run_directory(saved.config) / "metrics.jsonl").read_bytes() == metrics


def stamp(path, seconds):
    for inside in [*path.rglob("*"), path]:
        os.utime(inside, (seconds, seconds))


YEAR, HOUR = 365 * 86400, 3600
CLOCKS = {
    "an hour back": (-HOUR, lambda now, i: now - i * HOUR),
    "a year on": (YEAR, lambda now, i: now + (i % 2) * YEAR),
    "equal times": (0, lambda now, _: now),
    "no times": (0, lambda _now, _i: 0),
    "newest looks oldest": (-YEAR, lambda now, i: now - i * YEAR),
}


@pytest.mark.parametrize("clock", CLOCKS)
def test_no_clock_and_no_time_of_a_file_chooses_or_removes_a_checkpoint(
    make, tiny_corpus_dir, tmp_path, monkeypatch, clock
):
    shift, when = CLOCKS[clock]
    changes = SMALL | {"runs_root": str(tmp_path), "tracking.points": 1000, "checkpoint.keep": 3}
    config, corpus, real = make(changes), open_corpus(tiny_corpus_dir), time.time
    folder = run_directory(config) / "checkpoints"
    for life, stop in enumerate((4, 9, 14)):
        monkeypatch.setattr(time, "time", lambda life=life: real() + life * shift)
        with pytest.raises(InterruptedRunError):
            train(config, corpus, on_progress=Stop(stop))
        kept = sorted(path.name for path in folder.iterdir())
        saves = sorted({stop, *range(2, stop, 2)} | {9} & set(range(stop)))[-3:]
        assert kept == [f"step-{step:09d}" for step in saves]
        for i, name in enumerate(kept):
            stamp(folder / name, when(real(), i))
        state, lines = load_checkpoint(folder, run_id=run_id(config))
        assert (state["session"]["step"], lines) == (stop, [])


def test_the_clock_on_the_wall_does_not_decide_when_to_save(
    make, tiny_corpus_dir, tmp_path, monkeypatch
):
    config = make({"runs_root": str(tmp_path), "checkpoint.every_s": 3000.0})
    real, calls = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() + next(calls) * YEAR)
    train(config, open_corpus(tiny_corpus_dir))
    assert not (run_directory(config) / "checkpoints").exists()
