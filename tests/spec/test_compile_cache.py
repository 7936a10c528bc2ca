"""Compiled code lies in a folder that stays, that the user can choose, and nobody else fills."""

import os
import stat
from pathlib import Path

import pytest

from llmtrain.spec.compile_cache import INDUCTOR, TRITON, cache_folders, compile_cache
from llmtrain.spec.errors import ConfigError


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch, tmp_path):
    for name in (INDUCTOR, TRITON):
        monkeypatch.delenv(name, raising=False)
    tmp_path.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_processes_share_a_private_folder_for_the_time_of_a_sweep(make, tmp_path):
    compiled = make({"runtime.compile": True})
    before = os.umask(0)  # the most that a user can allow
    try:
        with compile_cache([make(), compiled]):
            folder, triton = os.environ[INDUCTOR], os.environ[TRITON]
    finally:
        os.umask(before)
    assert INDUCTOR not in os.environ
    assert TRITON not in os.environ
    assert folder.startswith(str(tmp_path / "cache/llmtrain/compiled/"))
    assert triton == f"{folder}/triton"
    assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o700
    with compile_cache([compiled]):
        assert os.environ[INDUCTOR] == folder  # again, and by every sweep


def test_eager_runs_make_no_folder(make, tmp_path):
    with compile_cache([make()]):
        assert INDUCTOR not in os.environ
    assert list(tmp_path.iterdir()) == []


def test_what_the_user_has_set_stays(make, monkeypatch, tmp_path):
    monkeypatch.setenv(INDUCTOR, str(tmp_path / "mine"))
    with compile_cache([make({"runtime.compile": True})]):
        assert os.environ[INDUCTOR] == str(tmp_path / "mine")
        assert os.environ[TRITON] == str(tmp_path / "mine/triton")
    assert os.environ[INDUCTOR] == str(tmp_path / "mine")
    monkeypatch.setenv(TRITON, str(tmp_path / "other"))
    assert cache_folders()[TRITON] == tmp_path / "other"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("mode", [0o770, 0o707])
@pytest.mark.parametrize("name", [INDUCTOR, TRITON])
def test_a_folder_that_others_can_fill_is_refused(name, mode, monkeypatch, tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(mode)
    monkeypatch.setenv(name, str(tmp_path / "open"))
    with pytest.raises(ConfigError, match=f"{name}=.* can be written by others.*chmod go-w"):
        cache_folders()
    (tmp_path / "open").chmod(0o755)
    cache_folders()


def test_a_folder_that_others_can_replace_is_refused(monkeypatch, tmp_path):
    (tmp_path / "open").mkdir()
    monkeypatch.setenv(INDUCTOR, str(tmp_path / "open/mine"))
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ConfigError, match="can be replaced by others, who can write in"):
        cache_folders()
    (tmp_path / "open").chmod(0o1777)  # as /tmp: only the owner renames
    cache_folders()


def test_another_users_folder_is_refused_behind_a_link_too(make, monkeypatch, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    monkeypatch.setenv(INDUCTOR, str(tmp_path / "link"))
    if os.geteuid() == 0:
        os.chown(tmp_path / "theirs", 12345, -1)
    else:
        owner = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(ConfigError, match="belongs to another user"):
        compile_cache([make({"runtime.compile": True})]).__enter__()
