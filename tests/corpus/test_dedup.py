import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.corpus.dedup import NearDuplicates, shingle_hashes, signature
from llmtrain.corpus.prepare import prepare
from llmtrain.corpus.shards import Corpus, open_corpus
from llmtrain.spec.data import DataConfig

VOCABULARY = [f"w{i}" for i in range(2000)]


def shingles(text: bytes) -> set[tuple[bytes, ...]]:
    """Distinct 5-word runs by a regular expression: the definition, another way."""
    words = re.findall(rb"[0-9A-Za-z_\x80-\xff]+", text)
    width = min(5, len(words))
    return {tuple(words[i : i + width]) for i in range(len(words) - width + 1) if width}


def jaccard(a: bytes, b: bytes) -> float:
    one, two = shingles(a), shingles(b)
    return len(one & two) / len(one | two)


def document(rng: random.Random, n_words: int) -> list[str]:
    return rng.choices(VOCABULARY, k=n_words)


def edited(rng: random.Random, words: list[str], n_edits: int) -> list[str]:
    words = list(words)
    for place in rng.sample(range(len(words)), n_edits):
        words[place] = "edited"
    return words


@settings(max_examples=200)
@given(st.text("ab _-\n", max_size=80) | st.text(max_size=60))
def test_shingles_are_the_distinct_runs_of_five_words(text: str) -> None:
    assert len(shingle_hashes(text.encode())) == len(shingles(text.encode()))


def test_shared_shingles_have_equal_hashes_wherever_they_stand() -> None:
    one = b"alpha beta gamma delta epsilon zeta"
    two = b"-- other words before: alpha beta\n gamma,delta epsilon zeta!"
    assert set(shingle_hashes(one).tolist()) < set(shingle_hashes(two).tolist())


@pytest.mark.parametrize("n_edits", [2, 8, 20, 50])
def test_equal_signature_rows_estimate_the_jaccard_similarity(n_edits: int) -> None:
    rng = random.Random(n_edits)
    errors = []
    for _ in range(20):
        words = document(rng, 400)
        a, b = (" ".join(w).encode() for w in (words, edited(rng, words, n_edits)))
        estimate = np.mean(signature(shingle_hashes(a)) == signature(shingle_hashes(b)))
        errors.append(float(estimate) - jaccard(a, b))
    # Binomial over 96 hashes: at most 0.051 per pair, 0.0114 for the mean of 20.
    assert abs(np.mean(errors)) < 0.035
    assert 0.5 * 0.02 < np.std(errors) < 0.09


def test_planted_near_duplicates_are_found_and_others_kept() -> None:
    rng = random.Random(0)
    near = NearDuplicates()
    originals = [document(rng, 300) for _ in range(200)]
    assert not any(near.seen(" ".join(words).encode()) for words in originals)
    close = [" ".join(edited(rng, words, 3)).encode() for words in originals]
    assert (
        min(jaccard(" ".join(o).encode(), c) for o, c in zip(originals, close, strict=True)) > 0.8
    )
    assert sum(near.seen(text) for text in close) >= 198
    far = [" ".join(edited(rng, words, 25)).encode() for words in originals]
    assert max(jaccard(" ".join(o).encode(), f) for o, f in zip(originals, far, strict=True)) < 0.6
    assert sum(near.seen(text) for text in far) <= 10


def test_texts_without_words_are_never_near_duplicates() -> None:
    near = NearDuplicates()
    assert [near.seen(text) for text in (b"", b"...", b"!!!", b"one", b"one", b"two")] == [
        False, False, False, False, True, False,
    ]  # fmt: skip


def test_no_near_duplicate_is_left_between_the_splits(
    configure: Callable[..., DataConfig],
    tmp_path: Path,
    split_texts: Callable[[Corpus], tuple[list[bytes], list[bytes]]],
) -> None:
    rng = random.Random(1)
    originals = [document(rng, 200) for _ in range(30)]
    for number, words in enumerate(originals):
        for copy in range(4):
            text = " ".join(edited(rng, words, copy))
            (tmp_path / f"{number}_{copy}.txt").write_text(text)
    config = configure(paths=(str(tmp_path),), deduplicate="near")
    corpus = open_corpus(prepare(config))
    train, val = split_texts(corpus)
    assert max(jaccard(a, b) for a in train for b in val) < 0.5
    assert corpus.manifest.source["near_duplicates"] == "90"
    assert len(train) + len(val) == 30
