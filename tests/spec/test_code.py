"""The identity of the code, against git's own answers and in folders that git does not track."""

import shutil
import subprocess

import pytest

from llmtrain.spec.code import UNKNOWN, _identity, code_identity, environment


def git(root, *arguments):
    who = ["-c", "user.name=x", "-c", "user.email=x@x"]
    done = subprocess.run(
        ["git", "-C", str(root), *who, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path):
    """A package of two files in a folder without git."""
    folder = tmp_path / "project" / "package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "a.py").write_text("x = 1\n")
    return folder


def identity(package):
    _identity.cache_clear()
    return code_identity(package)


def test_a_folder_without_git_is_known_by_its_files(package, tmp_path):
    found = identity(package)
    assert (found["commit"], found["change"]) == (UNKNOWN, "")
    copy = shutil.copytree(package, tmp_path / "elsewhere" / "package")
    assert identity(copy) == found
    (copy / "a.py").write_text("x = 2\n")
    assert identity(copy)["source"] != found["source"]


def test_a_commit_a_change_and_a_new_file_are_told_apart(package):
    root = package.parent
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "one")
    clean = identity(package)
    assert clean["commit"] == git(root, "rev-parse", "HEAD")
    assert clean["change"] == ""
    (package / "new.py").write_text("y = 1\n")
    new = identity(package)
    (package / "new.py").write_text("y = 2\n")
    newer = identity(package)
    (package / "new.py").unlink()
    (package / "a.py").write_text("x = 2\n")
    changed = identity(package)
    changes = {clean["change"], new["change"], newer["change"], changed["change"]}
    assert len(changes) == 4
    (root / "notes.txt").write_text("not code")
    assert identity(package) == changed


def test_an_installed_copy_is_not_taken_for_the_repository_around_it(package):
    outer = package.parent.parent
    git(outer, "init", "-q")
    (outer / "other.py").write_text("")
    git(outer, "add", "other.py")
    git(outer, "commit", "-qm", "someone else's")
    assert identity(package)["commit"] == UNKNOWN


def test_the_environment_names_the_libraries_without_importing_them():
    found = environment()
    assert found["numpy"] == __import__("numpy").__version__
    assert {"python", "platform", "host", "torch", "llmtrain"} <= set(found)
