import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from llmtrain.corpus.shards import open_corpus
from llmtrain.spec.build import build
from llmtrain.spec.data import DataConfig

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs" / "data").glob("*.yaml"))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = str(ROOT / "scripts" / "prepare_data.py")
    command = [sys.executable, script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_the_named_corpora_are_there() -> None:
    names = "c4 fineweb_edu local openwebtext pysource pysource_all tinystories wikitext"
    assert [path.stem for path in CONFIGS] == names.split()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_data_config_lists_every_field_and_builds(path: Path) -> None:
    raw = OmegaConf.to_container(OmegaConf.load(path))
    config = build(DataConfig, raw)
    assert isinstance(raw, dict)
    assert list(raw) == [field.name for field in dataclasses.fields(DataConfig)]
    assert config.name == path.stem


def test_the_script_prepares_reports_and_then_finds(toy: DataConfig) -> None:
    arguments = ("data=local", f"data.paths=[{toy.paths[0]}]", f"data.root={toy.root}")
    first = run(*arguments)
    assert first.returncode == 0, first.stderr
    (folder,) = Path(toy.root).iterdir()
    manifest = open_corpus(folder).manifest
    for fact in (f"{manifest.train.n_tokens:,}", f"{manifest.val.n_bytes:,}", manifest.data_id):
        assert fact in first.stdout
    assert str(folder) in first.stdout
    assert "tokenize train: 100%" in first.stderr
    again = run(*arguments)
    assert (again.returncode, again.stderr) == (0, "")
    content = bytearray((folder / "val.bin").read_bytes())
    content[0] ^= 1
    (folder / "val.bin").write_bytes(content)
    damaged = run(*arguments)
    assert damaged.returncode == 5
    assert damaged.stderr.count("\n") == 1
    assert "val.bin: tokens 0 to" in damaged.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data=nothing", "nothing"),
        ("data.nme=x", "nme"),
        ("+other=1", "adds a key"),
        ("data.name=../evil", "data.name='../evil' must match"),
        ("data.max_bytes=1.5", "data.max_bytes: expected int"),
        ("data.tokenizer=bpe", "data.vocab_size=256 must lie in"),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2(
    tmp_path: Path, override: str, message: str
) -> None:
    done = run(f"data.root={tmp_path}/data", override)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []
