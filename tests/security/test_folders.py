"""T6, T9: names stay inside their folders, and folders that others control are not used."""

import json
import os
import random
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest

from llmtrain.corpus.manifest import ShardInfo
from llmtrain.corpus.prepare import prepare
from llmtrain.corpus.shards import open_corpus
from llmtrain.spec import rundir
from llmtrain.spec.errors import ConfigError, LlmtrainError, MismatchError
from llmtrain.spec.settings import build_run
from llmtrain.sweep.ledger import is_done
from llmtrain.training.loop import train

PIECES = (
    "..", "/", "\\", "~", "a", "runs", "\0", "\n", " ", ".", "%2e", "..;", "\u2024", "\u2215", "：",
    "-", "$HOME", "con", "{x}", "*", "|", "<b>", "é", "C:", "\u202e", "A1",
)  # fmt: skip
FIELDS = (("name",), ("data", "name"), ("tracking", "project"), ("tracking", "entity"))


def hostile_names(count: int) -> list[str]:
    """Return `count` names, nearly all of them meant to leave a folder."""
    rng = random.Random(0)
    names = {"../x", "/etc/passwd", "..", ".", "", "a/../../b", "x" * 65, "a\n", "a\0"}
    while len(names) < count:
        names.add("".join(rng.choices(PIECES, k=rng.randint(1, 6))))
    return sorted(names)


def test_no_name_leads_out_of_its_folder(raw: dict[str, Any], tmp_path: Path) -> None:
    raw["runs_root"] = str(tmp_path / "runs")
    names = hostile_names(500)
    assert len(names) == 500
    refused = 0
    for name in names:
        for path in FIELDS:
            changed = json.loads(json.dumps(raw))
            (changed if len(path) == 1 else changed[path[0]])[path[-1]] = name
            try:
                config, _ = build_run(changed)
            except ConfigError:
                refused += 1
                continue
            directory = rundir.run_directory(config)
            assert directory.resolve().parent.parent == (tmp_path / "runs").resolve()
            assert directory.name.isascii()
            assert name.isprintable()
        try:
            ShardInfo(file=name, n_tokens=1, sha256="0" * 64)
        except ConfigError:
            continue
        assert (tmp_path / name).resolve().parent == tmp_path.resolve()
    assert refused > 0.9 * 4 * len(names)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("link", ["family", "run", "lock"])
def test_a_link_out_of_the_runs_root_is_not_followed(tmp_path: Path, link: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("precious")
    directory = tmp_path / "runs" / "family" / "run"
    planted = {"family": directory.parent, "run": directory, "lock": directory / "lock"}[link]
    planted.parent.mkdir(parents=True)
    planted.symlink_to(outside / "file" if link == "lock" else outside)
    with pytest.raises(MismatchError, match="is reached through the link"):
        rundir.hold(directory).__enter__()
    assert (outside / "file").read_text() == "precious"


def test_a_runs_root_that_is_a_link_is_fine(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "scratch")
    with rundir.hold(tmp_path / "runs" / "family" / "run"):
        assert (tmp_path / "scratch" / "family" / "run" / "lock").is_file()


def test_the_users_umask_holds_for_every_file(make: Any, text_files: Path, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        data = {"data.paths": [str(text_files)], "data.root": str(tmp_path / "data")}
        config = make({"runs_root": str(tmp_path / "runs"), "checkpoint.every_steps": 5} | data)
        train(config, open_corpus(prepare(config.data)))
    finally:
        os.umask(before)
    made = list(tmp_path.rglob("*"))
    assert len(made) > 10
    assert [path for path in made if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def test_nothing_temporary_lies_outside_the_run(
    make: Any, tiny_corpus_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    train(make({"runs_root": str(tmp_path / "runs")}), open_corpus(tiny_corpus_dir))
    assert list((tmp_path / "tmp").iterdir()) == []


def foreign(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the directory to another user, or pretend that we are another where we may not."""
    if os.geteuid() == 0:
        os.chown(directory, 12345, -1)
    else:
        owner = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)


def test_another_users_run_is_neither_continued_nor_taken_as_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "family" / "run"
    directory.mkdir(parents=True)
    (directory / "record.json").write_text("{}")
    assert is_done(directory)
    foreign(directory, monkeypatch)
    assert not is_done(directory)
    with pytest.raises(LlmtrainError, match="belongs to another user") as caught:
        rundir.hold(directory).__enter__()
    assert caught.value.exit_code == 5


def test_a_run_that_every_user_can_write_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "family" / "run"
    directory.mkdir(parents=True)
    directory.chmod(0o777)
    with pytest.raises(MismatchError, match="can be written by every user"):
        rundir.hold(directory).__enter__()
    directory.chmod(0o770)  # a group may share a sweep
    with rundir.hold(directory):
        pass
