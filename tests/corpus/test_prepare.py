import dataclasses
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmtrain.corpus.prepare import corpus_dir, prepare
from llmtrain.corpus.shards import Corpus, open_corpus
from llmtrain.spec.data import DataConfig
from llmtrain.spec.errors import ConfigError, MismatchError

Split = Callable[[Corpus], tuple[list[bytes], list[bytes]]]

BUILDER = """
import os, sys
from llmtrain.corpus.prepare import prepare
from llmtrain.spec.data import DataConfig
die_at = int(sys.argv[1])
calls = 0
def progress(stage, share):
    global calls
    calls += 1
    if calls == die_at:
        os.kill(os.getpid(), 9)
prepare({config!r}, progress=progress)
print(calls)
"""


def builder(config: DataConfig, die_at: int = -1) -> subprocess.Popen[str]:
    code = BUILDER.replace("{config!r}", repr(config))
    command = [sys.executable, "-c", code, str(die_at)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


def test_the_splits_are_the_documents_and_share_none(
    toy: DataConfig, texts: list[str], split_texts: Split
) -> None:
    folder = prepare(toy)
    train, val = split_texts(open_corpus(folder))
    assert set(files(folder)) == {"manifest.json", "token_bytes.npy", "train.bin", "val.bin"}
    assert not set(train) & set(val)
    assert sorted(train + val) == sorted(text.encode() for text in texts)
    # Held out by content: this is the rule, computed once more.
    held_out = {
        text.encode()
        for text in texts
        if int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < 0.2 * 2**64
    }
    assert set(val) == held_out
    assert 4 <= len(val) <= 25


def test_counts_and_hashes_are_those_of_the_text(toy: DataConfig, texts: list[str]) -> None:
    manifest = open_corpus(prepare(toy)).manifest
    encoded = [text.encode() for text in texts]
    assert manifest.train.n_bytes + manifest.val.n_bytes == sum(map(len, encoded))
    assert manifest.train.n_documents + manifest.val.n_documents == len(texts)
    assert manifest.train.n_tokens == manifest.train.n_bytes + manifest.train.n_documents
    digests = b"".join(hashlib.sha256(text).digest()[:16] for text in encoded)
    assert manifest.text_sha256 == hashlib.sha256(digests).hexdigest()


def test_duplicates_never_straddle_the_splits_even_where_they_are_kept(
    configure: Callable[..., DataConfig], texts: list[str], tmp_path: Path, split_texts: Split
) -> None:
    for number, text in enumerate(texts * 2):
        (tmp_path / f"{number}.txt").write_text(text)
    corpus = open_corpus(prepare(configure(paths=(str(tmp_path),), deduplicate="none")))
    train, val = split_texts(corpus)
    assert len(train) + len(val) == 120
    assert not set(train) & set(val)
    exact = open_corpus(prepare(configure(paths=(str(tmp_path),))))
    assert exact.manifest.source["exact_duplicates"] == "60"
    assert exact.manifest.train.n_documents + exact.manifest.val.n_documents == 60


def test_a_document_keeps_its_side_as_the_corpus_grows(
    configure: Callable[..., DataConfig], texts: list[str], tmp_path: Path, split_texts: Split
) -> None:
    for number, text in enumerate(texts):
        (tmp_path / f"{number:02}.txt").write_text(text)
    _, few = split_texts(open_corpus(prepare(configure(paths=(f"{tmp_path}/[01]*.txt",)))))
    _, many = split_texts(open_corpus(prepare(configure(paths=(f"{tmp_path}/*.txt",)))))
    assert set(few) < set(many)


def test_two_documents_are_enough_and_one_is_refused(
    configure: Callable[..., DataConfig], tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    config = configure(paths=(f"{tmp_path}/*.txt",), val_fraction=1e-5)
    with pytest.raises(ConfigError, match="1 documents with text; at least two"):
        prepare(config)
    (tmp_path / "b.txt").write_text("two\n")
    manifest = open_corpus(prepare(config)).manifest
    assert (manifest.train.n_documents, manifest.val.n_documents) == (1, 1)


def test_unusable_documents_are_left_out_and_counted(
    configure: Callable[..., DataConfig], tmp_path: Path
) -> None:
    contents = [b"good", b"also good", b"", b" \n", b"a\0b", b"\xff\xfe", b"good"]
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.txt").write_bytes(content)
    source = open_corpus(prepare(configure(paths=(str(tmp_path),)))).manifest.source
    # An empty txt file holds no document at all; the blank one does.
    counts = {key: source[key] for key in ("empty", "with_nul", "not_utf8", "exact_duplicates")}
    assert counts == {"empty": "1", "with_nul": "1", "not_utf8": "1", "exact_duplicates": "1"}


def test_an_empty_corpus_says_why_and_leaves_nothing(
    configure: Callable[..., DataConfig], tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_bytes(b"a\0b")
    with pytest.raises(ConfigError, match=r"0 documents with text \(left out: 1 with_nul\)"):
        prepare(configure(paths=(str(tmp_path / "a.txt"),)))
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_max_bytes_ends_the_reading(toy: DataConfig, texts: list[str]) -> None:
    manifest = open_corpus(prepare(dataclasses.replace(toy, max_bytes=5000))).manifest
    sizes = np.cumsum([len(text.encode()) for text in texts])
    expected = int(sizes[np.searchsorted(sizes, 5000)])
    assert manifest.train.n_bytes + manifest.val.n_bytes == expected


def test_the_folder_follows_content_and_settings_and_nothing_else(
    toy: DataConfig, tmp_path: Path
) -> None:
    folder = corpus_dir(toy)
    assert folder == corpus_dir(dataclasses.replace(toy, max_epochs=1.0))
    elsewhere = corpus_dir(dataclasses.replace(toy, root=str(tmp_path / "x")))
    assert elsewhere == tmp_path / "x" / folder.name
    assert corpus_dir(dataclasses.replace(toy, deduplicate="none")) != folder
    with Path(toy.paths[0]).open("a") as file:
        file.write('{"text": "more"}\n')
    assert corpus_dir(toy) != folder


def test_a_prepared_corpus_is_not_built_again(toy: DataConfig) -> None:
    folder = prepare(toy)
    inode = (folder / "train.bin").stat().st_ino
    assert prepare(toy) == folder
    assert (folder / "train.bin").stat().st_ino == inode
    os.truncate(folder / "train.bin", 10)
    with pytest.raises(MismatchError, match="remove the folder"):
        prepare(toy)


def test_two_builders_at_once_give_one_sound_folder(toy: DataConfig, tmp_path: Path) -> None:
    builders = [builder(toy), builder(toy)]
    outcomes = [process.communicate(timeout=300) for process in builders]
    assert [process.returncode for process in builders] == [0, 0], outcomes
    assert [path.name for path in Path(toy.root).iterdir()] == [corpus_dir(toy).name]
    clean = prepare(dataclasses.replace(toy, root=str(tmp_path / "clean")))
    assert files(corpus_dir(toy)) == files(clean)
    open_corpus(corpus_dir(toy))


@pytest.mark.parametrize("die_at", [1, 30, 61, 62])
def test_a_killed_builder_leaves_nothing_that_is_read(
    toy: DataConfig, tmp_path: Path, die_at: int
) -> None:
    # 60 documents read, then a batch of each split.
    process = builder(toy, die_at)
    process.communicate(timeout=300)
    assert process.returncode == -9
    assert not corpus_dir(toy).exists()
    with pytest.raises(ConfigError):
        open_corpus(corpus_dir(toy))
    folder = prepare(toy)
    assert [path.name for path in Path(toy.root).iterdir()] == [folder.name]
    clean = prepare(dataclasses.replace(toy, root=str(tmp_path / "clean")))
    assert files(folder) == files(clean)


@pytest.mark.parametrize("stop_at", [1, 30, 61, 62])
def test_a_stopped_build_leaves_nothing(toy: DataConfig, tmp_path: Path, stop_at: int) -> None:
    calls: list[str] = []

    def stop(stage: str, _share: float) -> None:
        calls.append(stage)
        if len(calls) == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(toy, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["toy.jsonl"]


def test_a_folder_that_cannot_be_written_is_one_line(toy: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the root should be")
    with pytest.raises(ConfigError, match=r"choose another data\.root"):
        prepare(toy)


def test_a_full_disk_is_one_line_and_leaves_nothing(toy: DataConfig, tmp_path: Path) -> None:
    # A limit on file size fails a write the way a full disk does, in a process of its own.
    code = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))\n"
    ) + BUILDER.replace("{config!r}", repr(toy))
    done = subprocess.run(
        [sys.executable, "-c", code, "-1"], capture_output=True, text=True, check=False
    )
    last = done.stderr.strip().splitlines()[-1]
    assert "DiskError" in last
    assert "limit on the size of files reached (ulimit -f); raise it" in last
    assert [path.name for path in tmp_path.iterdir()] == ["toy.jsonl"]


def test_progress_names_stages_and_reaches_the_end(toy: DataConfig) -> None:
    seen: list[tuple[str, float]] = []
    prepare(toy, progress=lambda stage, share: seen.append((stage, share)))
    assert [*dict(seen)] == ["read", "tokenize train", "tokenize val"]
    assert seen[-1] == ("tokenize val", 1.0)
    assert all(0 <= share <= 1 for _, share in seen)
