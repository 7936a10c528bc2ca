"""The manifest of a prepared corpus: what was read, and the hash of every byte that came of it."""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmtrain.spec.build import build, config_hash
from llmtrain.spec.check import check, check_name
from llmtrain.spec.errors import ConfigError, LlmtrainError, MismatchError
from llmtrain.spec.jsonfile import read_json

SCHEMA = 1
MANIFEST_FILE = "manifest.json"
TOKEN_BYTES_FILE = "token_bytes.npy"
REBUILD = "remove the folder and prepare it again"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo:
    """A run of tokens inside its split's file; the shards of a split follow each other in it.

    One file per split is one memory map whatever its size; a hash per shard says where a
    damaged file is damaged.
    """

    file: str
    n_tokens: int
    sha256: str

    def __post_init__(self) -> None:
        """Refuse a file name that leaves the corpus folder."""
        check_name("shard.file", self.file)
        check(self.n_tokens > 0, f"shard.n_tokens={self.n_tokens} must be above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitInfo:
    """Counts of one split, separators included in the tokens and not in the bytes."""

    n_tokens: int
    n_bytes: int
    """Bytes of text."""
    n_documents: int
    shards: tuple[ShardInfo, ...]

    def __post_init__(self) -> None:
        """Refuse counts that disagree, and shards of more than one file."""
        total = sum(shard.n_tokens for shard in self.shards)
        check(total == self.n_tokens, f"shards hold {total} tokens, the split {self.n_tokens}")
        check(len({shard.file for shard in self.shards}) == 1, "a split lies in exactly one file")

    @property
    def file(self) -> str:
        """Name of the file that holds the split."""
        return self.shards[0].file


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Facts of a prepared corpus. No clocks and no absolute paths: equal text, equal `data_id`."""

    schema: int
    """Version of this layout."""
    name: str
    source: dict[str, str]
    """What was read and what was left out."""
    tokenizer: Literal["bytes", "bpe"]
    tokenizer_id: str
    """sha256 of the tokenizer."""
    vocab_size: int
    dtype: Literal["uint16", "uint32"]
    """Little-endian type of a stored token id."""
    train: SplitInfo
    val: SplitInfo
    text_sha256: str
    """sha256 over the sha256 of each document, in the order read."""
    token_bytes_sha256: str
    """Hash of the file that holds the bytes of text per token id."""

    @property
    def data_id(self) -> str:
        """Return the sha256 of the content: what a run record names its data by."""
        return config_hash(self)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write `manifest.json` with its own hash, flushed to the disk."""
    content = {"data_id": manifest.data_id, **dataclasses.asdict(manifest)}
    with (directory / MANIFEST_FILE).open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_manifest(directory: Path) -> Manifest:
    """Return the manifest of a corpus folder.

    Raises ConfigError where there is none or it is no JSON; MismatchError where it was edited or
    has another layout.
    """
    path = directory / MANIFEST_FILE
    try:
        raw: Any = read_json(path)
    except FileNotFoundError as error:
        message = f"{path}: no prepared corpus there; run scripts/prepare_data.py"
        raise ConfigError(message) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); {REBUILD}") from error
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        found = raw.get("schema") if isinstance(raw, dict) else type(raw).__name__
        raise MismatchError(f"{path}: schema {found!r}, this version reads {SCHEMA}; {REBUILD}")
    data_id = raw.pop("data_id", None)
    try:
        manifest = build(Manifest, raw)
    except LlmtrainError as error:
        raise MismatchError(f"{path}: damaged ({error}); {REBUILD}") from error
    if manifest.data_id != data_id:
        raise MismatchError(f"{path}: content and data_id disagree, it was edited; {REBUILD}")
    return manifest
