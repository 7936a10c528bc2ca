import gzip
import json
import os
import random
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from llmtrain.corpus.prepare import prepare
from llmtrain.corpus.shards import Corpus, open_corpus
from llmtrain.corpus.sources import Document, articles, documents, local_files
from llmtrain.spec.data import DataConfig
from llmtrain.spec.errors import ConfigError

Configure = Callable[..., DataConfig]


def write_parquet(path: Path, texts: list[str], column: str = "text") -> None:
    table = pyarrow.table({"id": list(range(len(texts))), column: texts})
    pyarrow.parquet.write_table(table, path, row_group_size=7)


def write_jsonl(path: Path, texts: list[str], column: str = "text") -> None:
    content = "".join(json.dumps({"id": i, column: t}) + "\n" for i, t in enumerate(texts))
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json.gz", "a.parquet"])
def test_rows_of_a_file_are_documents(
    configure: Configure, texts: list[str], tmp_path: Path, name: str
) -> None:
    write = write_parquet if name.endswith("parquet") else write_jsonl
    write(tmp_path / name, texts, "body")
    config = configure(paths=(str(tmp_path / name),), text_field="body")
    assert [d.text.decode() for d in documents(config)] == texts


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_an_absent_column_names_those_that_are_there(
    configure: Configure, texts: list[str], tmp_path: Path, name: str
) -> None:
    (write_parquet if name.endswith("parquet") else write_jsonl)(tmp_path / name, texts, "body")
    with pytest.raises(ConfigError, match=r"no column data\.text_field='text'; it has id, body"):
        prepare(configure(paths=(str(tmp_path / name),)))
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["big.txt", "big.txt.gz"])
def test_a_long_txt_file_becomes_documents_at_line_ends(
    configure: Configure, tmp_path: Path, name: str
) -> None:
    content = "".join(f"línea {i}\r\n" for i in range(20_000)).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    found = [d.text for d in documents(configure(paths=(str(tmp_path / name),)))]
    assert b"".join(found) == content
    assert 2 <= len(found) <= 5
    assert all(text.endswith(b"\r\n") for text in found)


def test_one_endless_line_is_cut_between_characters(configure: Configure, tmp_path: Path) -> None:
    content = "日本語🙂".encode() * 50_000
    (tmp_path / "line.txt").write_bytes(content)
    found = [d.text for d in documents(configure(paths=(str(tmp_path / "line.txt"),)))]
    assert b"".join(found) == content
    assert max(map(len, found)) < 2**20
    assert [text.decode() for text in found]


def test_folders_globs_and_files_are_joined_and_each_file_is_read_once(tmp_path: Path) -> None:
    for name in ("a.txt", "deep/b.jsonl", "deep/c.parquet", "deep/.hidden.txt", "deep/d.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "deep" / "manifest.json").write_text("{}")
    patterns = [str(tmp_path), f"{tmp_path}/**/*.txt", str(tmp_path / "a.txt")]
    names = [path.relative_to(tmp_path.resolve()).as_posix() for path in local_files(patterns)]
    assert names == ["a.txt", "deep/b.jsonl", "deep/c.parquet"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("none.txt", "matches no file"),
        ("none/*.txt", "matches no file"),
        ("empty", "matches no file"),
        ("picture.png", "is none of .txt"),
        ("broken.jsonl", "broken.jsonl:2: no JSON object"),
        ("numbers.jsonl", "holds int, not text"),
        ("array.jsonl", "it has list"),
        ("latin.jsonl", "latin.jsonl:1: no JSON object"),
        ("cut.txt.gz", "cut.txt.gz: cannot be read"),
        ("damaged.txt.gz", "damaged.txt.gz: cannot be read"),
        ("wrong.jsonl.gz", "wrong.jsonl.gz: cannot be read"),
        ("wrong.parquet", "wrong.parquet: cannot be read"),
    ],
)
def test_bad_files_are_one_line_and_leave_nothing(
    configure: Configure, tmp_path: Path, pattern: str, message: str
) -> None:
    text = tmp_path / "text"
    (text / "empty").mkdir(parents=True)
    contents = {
        "picture.png": b"x",
        "broken.jsonl": b'{"text": "a"}\n{"text": \n',
        "numbers.jsonl": b'{"text": 3}\n',
        "array.jsonl": b"[1]\n",
        "latin.jsonl": b'{"text": "\xe9"}\n',
        "cut.txt.gz": gzip.compress(random.Random(0).randbytes(9000))[:-3000],
        "damaged.txt.gz": gzip.compress(b"")[:10] + b"\xff" * 40,
        "wrong.jsonl.gz": b"not gzip",
        "wrong.parquet": b"not parquet",
    }
    for name, content in contents.items():
        (text / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        prepare(configure(paths=(str(text / pattern),)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "json.gz"])
def test_the_hub_code_reads_a_repository_folder_of_the_same_format(
    configure: Configure, texts: list[str], tmp_path: Path, suffix: str
) -> None:
    # A local folder in the hub's layout takes the same call with the same arguments.
    repository = tmp_path / "repository"
    repository.mkdir()
    write = write_parquet if suffix == "parquet" else write_jsonl
    write(repository / f"train-00000.{suffix}", texts[:40])
    write(repository / f"train-00001.{suffix}", texts[40:])
    config = configure(source="hub", hub_path=str(repository), hub_split="train", max_bytes=10**9)
    manifest = open_corpus(prepare(config)).manifest
    assert manifest.train.n_documents + manifest.val.n_documents == len(texts)
    few = configure(source="hub", hub_path=str(repository), hub_split="train", max_bytes=3000)
    few_split = open_corpus(prepare(few)).manifest
    assert 3000 <= few_split.train.n_bytes + few_split.val.n_bytes < 6000
    with pytest.raises(ConfigError, match="cannot be read"):
        prepare(configure(source="hub", hub_path=str(repository), hub_split="absent"))


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param({"HF_HUB_OFFLINE": "1"}, id="offline"),
        # Its library tries a refused connection again for half a minute.
        pytest.param({"HF_ENDPOINT": "http://127.0.0.1:9"}, id="refused", marks=pytest.mark.slow),
    ],
)
def test_a_hub_out_of_reach_is_one_line(tmp_path: Path, setting: dict[str, str]) -> None:
    script = Path(__file__).parents[2] / "scripts" / "prepare_data.py"
    done = subprocess.run(
        [sys.executable, str(script), "data=tinystories", f"data.root={tmp_path}/data"],
        env={**os.environ, **setting, "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 2
    line = done.stderr.removeprefix("read\n")
    assert line.startswith("prepare_data.py: data.hub_path=roneneldan/TinyStories: cannot be read")
    assert line.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_a_repository_with_code_is_refused_and_its_code_not_run(
    configure: Configure, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "repository.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        prepare(configure(source="hub", hub_path=str(repository), hub_split="train"))
    assert not (tmp_path / "ran").exists()


def test_lines_of_wikitext_become_articles() -> None:
    lines = [" = Valkyria = \n", "", " Text = more \n", " = = Plot = = \n", " b\n"]
    lines += ["", " = Tower = \n", " c\n"]
    found = [d.text.decode() for d in articles(Document(line.encode(), "w") for line in lines)]
    assert found == [
        " = Valkyria = \n Text = more \n = = Plot = = \n b\n",
        " = Tower = \n c\n",
    ]


def test_pysource_is_the_standard_library(
    configure: Configure, split_texts: Callable[[Corpus], tuple[list[bytes], list[bytes]]]
) -> None:
    train, val = split_texts(
        open_corpus(prepare(configure(source="pysource", paths=(), val_fraction=0.05)))
    )
    folder = Path(sysconfig.get_path("stdlib"))
    installed = set()
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder).parts
        if not {"site-packages", "dist-packages", "__pycache__"} & set(parts):
            content = path.read_bytes()
            if content.strip() and b"\0" not in content and content.isascii():
                installed.add(content)
    assert installed <= set(train + val)  # those beside are UTF-8 beyond ASCII
    assert len(train) + len(val) < 1.2 * len(installed)
    assert not set(train) & set(val)
    assert len(set(train + val)) == len(train) + len(val)
    assert 0.02 < len(val) / (len(train) + len(val)) < 0.08
