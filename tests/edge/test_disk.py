"""R6 outside of runs: corpus, report, picture and what is printed meet a disk that is full."""

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import plan
import pytest
from bad_disk import BadDisk, half_written
from edge import compose, guarded

from llmtrain.corpus.prepare import prepare
from llmtrain.corpus.shards import open_corpus
from llmtrain.scaling.analysis import analyze
from llmtrain.scaling.config import AnalyzeConfig
from llmtrain.scaling.load import load_runs
from llmtrain.scaling.report import write_report
from llmtrain.spec.build import build

SWEEP = ("sweep=demo", "sweep.budgets=[3e10,6e10]", "sweep.seeds=[0]")


@pytest.fixture
def refused(capfd):
    """Return a function that acts on a disk that fills up after so many operations.

    Returns how many there were; checks that anything but the end is one line with code 1.
    """

    def run(action, folder, allowed=10**9):
        with pytest.MonkeyPatch.context() as patch:
            disk = BadDisk(patch, folder, errno.ENOSPC, allowed)
            code = guarded(lambda: action() and None)
        said = capfd.readouterr().err
        if disk.done > allowed:
            (line,) = said.splitlines()
            assert code == 1
            assert "disk full; free space, then run the same command again" in line
            assert str(folder) in line
        else:
            assert (code, said) == (0, "")
        assert half_written(folder) == []
        return disk.done

    return run


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_a_corpus_is_whole_or_absent(make, text_files, tmp_path, refused, every):
    root = tmp_path / "data"
    data = make({"data.paths": [str(text_files)], "data.root": str(root)}).data
    n = refused(lambda: prepare(data), root)
    clean = open_corpus(prepare(data)).manifest
    for allowed in range(0, n, every):
        shutil.rmtree(root, ignore_errors=True)
        refused(lambda: prepare(data), root, allowed)
        assert not root.exists()
        assert open_corpus(prepare(data)).manifest == clean


@pytest.mark.parametrize("every", [100, pytest.param(6, marks=pytest.mark.slow)])
def test_a_report_holds_no_half_written_file(root, tmp_path, refused, every):
    options = [f"runs={root}/docs/results/demo/runs.csv", "bootstrap=20", "publish=disabled"]
    config = build(AnalyzeConfig, compose("analyze", options))
    analysis, out = analyze(config, load_runs(Path(config.runs))), tmp_path / "report"

    def write():
        write_report(analysis, out, [])

    n = refused(write, out)
    clean = {path.name: path.read_bytes() for path in out.rglob("*.*")}
    assert n > 4 * len(clean)
    for allowed in range(0, n, every):
        shutil.rmtree(out, ignore_errors=True)
        refused(write, out, allowed)
        for path in out.rglob("*.*"):
            assert path.read_bytes() == clean[path.name]


def test_a_picture_is_whole_or_as_it_was(tmp_path, refused, capfd):
    picture, other = tmp_path / "plan.svg", tmp_path / "plan.png"
    arguments = [*SWEEP, f"runs_root={tmp_path}", f"data.root={tmp_path}", f"picture={picture}"]
    other.write_text("not ours")
    for allowed in range(4):
        picture.write_text("as it was")
        assert refused(lambda: plan.main(arguments), tmp_path, allowed) > allowed
        assert picture.read_text() == "as it was"
    assert refused(lambda: plan.main(arguments), tmp_path) == 4
    assert picture.read_text().endswith("</svg>\n")
    assert other.read_text() == "not ours"
    assert {path.name for path in tmp_path.iterdir()} == {"plan.svg", "plan.png"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan.py", *SWEEP, "format=csv", "data.root=absent"),
        ("predict.py", "table=laws"),
        pytest.param(("status.py", "runs=runs", "json=true"), marks=pytest.mark.slow),
        pytest.param(("plan.py", *SWEEP, "data.root=absent"), marks=pytest.mark.slow),
    ],
)
def test_what_is_printed_to_a_full_disk_is_one_line_and_code_1(root, tmp_path, arguments):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/sweep.json").write_text('{"cells": {}}')
    script, *rest = arguments
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, str(root / "scripts" / script), *rest],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=240,
        )
    said = "the output: disk full; free space, then run the same command again"
    assert (done.returncode, done.stderr) == (1, f"{script}: {said}\n")
