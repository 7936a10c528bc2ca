import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from llmtrain.corpus.shards import Corpus
from llmtrain.spec.data import DataConfig

# The same examples in every run: no test fails for a draw that the next run does not make.
settings.register_profile(
    "repeated",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],  # of the machine, not of the code
)
settings.load_profile("repeated")

PLAIN = DataConfig(
    name="toy",
    source="local",
    scope="stdlib",
    paths=("absent",),
    text_field="text",
    hub_path=None,
    hub_config=None,
    hub_split=None,
    hub_revision=None,
    max_bytes=None,
    deduplicate="exact",
    tokenizer="bytes",
    vocab_size=256,
    val_fraction=0.2,
    max_epochs=4.0,
    root="data",
)


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., DataConfig]:
    """A DataConfig that writes below tmp_path/data, with the given fields replaced."""

    def make(**changes: Any) -> DataConfig:
        return dataclasses.replace(PLAIN, **{"root": str(tmp_path / "data"), **changes})

    return make


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Sixty different documents of made-up words, some of them not ASCII."""
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(300)]
    words += ["naïve", "Ωμέγα", "日本語", "🙂"]
    return [" ".join(rng.choices(words, k=rng.randint(40, 200))) + "\n" for _ in range(60)]


@pytest.fixture
def toy(configure: Callable[..., DataConfig], texts: list[str], tmp_path: Path) -> DataConfig:
    """The sixty documents as one jsonl file."""
    path = tmp_path / "toy.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return configure(paths=(str(path),))


@pytest.fixture(scope="session")
def split_texts() -> Callable[[Corpus], tuple[list[bytes], list[bytes]]]:
    """The documents of a byte corpus, read back from its tokens."""

    def read(corpus: Corpus) -> tuple[list[bytes], list[bytes]]:
        train, val = (
            tokens.astype("uint8").tobytes().split(b"\0")[:-1]
            for tokens in (corpus.train, corpus.val)
        )
        return train, val

    return read
