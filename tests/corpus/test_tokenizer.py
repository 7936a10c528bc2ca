import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.corpus.prepare import prepare
from llmtrain.corpus.shards import open_corpus
from llmtrain.corpus.tokenizer import SEPARATOR, BpeTokenizer, ByteTokenizer, load, train_bpe
from llmtrain.spec.data import DataConfig
from llmtrain.spec.errors import ConfigError, MismatchError


@pytest.fixture(scope="module")
def bpe(texts: list[str]) -> BpeTokenizer:
    return train_bpe(texts, vocab_size=600)


@settings(max_examples=200)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_bytes_come_back(text: str) -> None:
    tokenizer = ByteTokenizer()
    (ids,) = tokenizer.encode([text.encode()])
    assert ids.tolist() == list(text.encode())
    assert tokenizer.decode(ids.tolist()) == text


@settings(max_examples=200)
@given(text=st.text())
def test_any_unicode_comes_back_from_bpe(bpe: BpeTokenizer, text: str) -> None:
    (ids,) = bpe.encode([text.encode()])
    assert bpe.decode(ids.tolist()) == text
    assert bpe.token_bytes()[ids].sum() == len(text.encode())


def test_bpe_is_shorter_than_bytes_on_its_own_text(bpe: BpeTokenizer, texts: list[str]) -> None:
    encoded = [text.encode() for text in texts]
    n_tokens = sum(map(len, bpe.encode(encoded)))
    assert n_tokens < 0.6 * sum(map(len, encoded))


def test_text_that_spells_the_separator_is_text(bpe: BpeTokenizer) -> None:
    (ids,) = bpe.encode([f"a{SEPARATOR}b".encode()])
    assert bpe.separator not in ids
    assert bpe.decode(ids.tolist()) == f"a{SEPARATOR}b"


def test_separators_decode_to_line_ends(bpe: BpeTokenizer) -> None:
    one, two = bpe.encode([b"one", b"two"])
    assert bpe.decode([*one, bpe.separator, *two]) == "one\ntwo"
    assert ByteTokenizer().decode(b"one\0two") == "one\ntwo"
    assert ByteTokenizer().decode(b"caf\xc3") == "caf\ufffd"


def test_training_twice_gives_the_same_tokenizer(bpe: BpeTokenizer, texts: list[str]) -> None:
    assert train_bpe(texts, vocab_size=600).identity == bpe.identity


def test_a_vocabulary_out_of_reach_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"yields only \d+ BPE tokens; set data.vocab_size="):
        train_bpe(["aa ab"], vocab_size=5000)


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(
    toy: DataConfig, texts: list[str], tokenizer: str
) -> None:
    vocab_size = 256 if tokenizer == "bytes" else 500
    config = dataclasses.replace(toy, tokenizer=tokenizer, vocab_size=vocab_size)
    folder = prepare(config)
    corpus = open_corpus(folder)
    separator = load(folder).separator
    assert corpus.token_bytes[separator] == 0
    for tokens, split in (
        (corpus.train, corpus.manifest.train),
        (corpus.val, corpus.manifest.val),
    ):
        assert corpus.token_bytes[tokens].sum() == split.n_bytes
        assert np.count_nonzero(tokens == separator) == split.n_documents
        assert tokens[-1] == separator
    both = [*corpus.train.tolist(), *corpus.val.tolist()]
    assert sorted(load(folder).decode(both).split()) == sorted(" ".join(texts).split())
    assert corpus.manifest.vocab_size == vocab_size


def test_bpe_learns_from_the_training_split_alone(toy: DataConfig, tmp_path: Path) -> None:
    # A word that only a held-out document holds, a thousand times, is no token.
    number = 0
    while True:
        text = f"{number} " + "quizzaciously " * 1000
        if int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < 0.2 * 2**64:
            break
        number += 1
    (tmp_path / "held_out.jsonl").write_text(f'{{"text": "{text}"}}\n')
    paths = (*toy.paths, str(tmp_path / "held_out.jsonl"))
    folder = prepare(dataclasses.replace(toy, paths=paths, tokenizer="bpe", vocab_size=500))
    assert text.encode() in load(folder).decode(open_corpus(folder).val.tolist()).encode()
    assert "zzac" not in (folder / "tokenizer.json").read_text()


def test_an_altered_tokenizer_is_refused(toy: DataConfig) -> None:
    folder = prepare(dataclasses.replace(toy, tokenizer="bpe", vocab_size=400))
    path = folder / "tokenizer.json"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == load(folder).identity
    path.write_text(path.read_text().replace("a", "b", 1))
    with pytest.raises(MismatchError, match=r"tokenizer.json: differs"):
        load(folder)
    path.unlink()
    with pytest.raises(MismatchError, match=r"tokenizer.json: missing"):
        load(folder)


def test_large_vocabularies_are_stored_in_32_bits(
    toy: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Training 65,537 merges takes minutes; a wider word list does not exist in a toy corpus.
    wide = type("Wide", (ByteTokenizer,), {"vocab_size": 2**16 + 1})
    monkeypatch.setattr(wide, "token_bytes", lambda _self: np.ones(2**16 + 1, dtype=np.int64))
    monkeypatch.setattr("llmtrain.corpus.prepare.ByteTokenizer", wide)
    corpus = open_corpus(prepare(toy))
    assert corpus.manifest.dtype == "uint32"
    assert corpus.train.dtype == np.uint32


def test_a_fork_after_encoding_is_silent_and_can_encode() -> None:
    code = (
        "import os, sys\n"
        "from llmtrain.corpus.tokenizer import train_bpe\n"
        "bpe = train_bpe([' '.join(map(str, range(3000)))], vocab_size=300)\n"
        "bpe.encode([b'some text'] * 100)\n"
        "child = os.fork()\n"
        "bpe.encode([b'some text'] * 100)\n"
        "if child: sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_bytes_need_neither_library(toy: DataConfig) -> None:
    code = (
        "import sys\n"
        "sys.modules['datasets'] = sys.modules['tokenizers'] = None\n"
        "from llmtrain.corpus.prepare import prepare\n"
        "from llmtrain.corpus.shards import open_corpus\n"
        "from llmtrain.corpus.tokenizer import load\n"
        "from llmtrain.spec.data import DataConfig\n"
        f"folder = prepare({toy!r})\n"
        "print(load(folder).decode(open_corpus(folder).val[:20].tolist()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) >= 10
