"""A prepared corpus opened for training, and the order in which its tokens are read."""

import hashlib
import io
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmtrain.corpus.manifest import (
    REBUILD,
    TOKEN_BYTES_FILE,
    Manifest,
    ShardInfo,
    SplitInfo,
    read_manifest,
)
from llmtrain.spec.errors import ConfigError, MismatchError
from llmtrain.spec.jsonfile import read_json

__all__ = [
    "BlockOrder",
    "Corpus",
    "Manifest",
    "ShardInfo",
    "SplitInfo",
    "open_corpus",
    "validation_starts",
]

TokenArray = NDArray[np.unsignedinteger[Any]]
STORED: dict[str, np.dtype[np.unsignedinteger[Any]]] = {
    "uint16": np.dtype("<u2"),
    "uint32": np.dtype("<u4"),
}
VERIFIED_FILE = ".verified.json"
TICK_NS = 20_000_000
"""A file system's clock stands still for up to 10 ms: two changes in there have one time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """A verified corpus; `train` and `val` are 1-D read-only memory maps of token ids."""

    directory: Path
    manifest: Manifest
    train: TokenArray
    val: TokenArray
    token_bytes: NDArray[np.int64]
    """Bytes of text per token id, shape (vocab_size,); 0 for the separator."""


def open_corpus(directory: Path) -> Corpus:
    """Open a corpus folder and verify it against its manifest.

    Hashes and token ids are checked in full the first time; later, size, times and inode stand
    in for an unchanged file. Raises MismatchError for shards that are missing, cut, altered or of
    another corpus, and ConfigError for a missing or unreadable manifest.
    """
    manifest = read_manifest(directory)
    verified = _read_verified(directory, manifest)
    stamps: dict[str, list[int]] = {}
    for split in (manifest.train, manifest.val):
        path = directory / split.file
        stamps[split.file] = _stamp(path)
        expected = split.n_tokens * STORED[manifest.dtype].itemsize
        if stamps[split.file][0] != expected:
            raise MismatchError(
                f"{path}: {stamps[split.file][0]} bytes, its manifest says {expected}; {REBUILD}"
            )
        if verified.get(split.file) != stamps[split.file]:
            _wait_for_tick(stamps[split.file][2])
            _verify(_map(path, manifest), split, manifest, path)
    token_bytes = _read_token_bytes(directory, manifest)
    if verified != stamps:
        _write_verified(directory, manifest, stamps)
    return Corpus(
        directory=directory,
        manifest=manifest,
        train=_map(directory / manifest.train.file, manifest),
        val=_map(directory / manifest.val.file, manifest),
        token_bytes=token_bytes,
    )


def _map(path: Path, manifest: Manifest) -> TokenArray:
    return np.memmap(path, dtype=STORED[manifest.dtype], mode="r")


def _stamp(path: Path) -> list[int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise MismatchError(f"{path}: missing though its manifest names it; {REBUILD}") from error
    # ctime: a tool can set mtime back, but not this.
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _wait_for_tick(changed_ns: int) -> None:
    """Return when a change to come has a later time than this one, so that it will be seen."""
    age = time.time_ns() - changed_ns
    time.sleep(min(max(TICK_NS - age, 0), TICK_NS) / 1e9)


def _verify(tokens: TokenArray, split: SplitInfo, manifest: Manifest, path: Path) -> None:
    first = 0
    for shard in split.shards:
        part = tokens[first : first + shard.n_tokens]
        where = f"{path}: tokens {first} to {first + shard.n_tokens}"
        if hashlib.sha256(part.data).hexdigest() != shard.sha256:
            raise MismatchError(f"{where} differ from their sha256 in the manifest; {REBUILD}")
        largest, last = int(part.max()), manifest.vocab_size - 1
        if largest > last:
            raise MismatchError(f"{where} hold id {largest}, the largest is {last}; {REBUILD}")
        first += shard.n_tokens


def _read_token_bytes(directory: Path, manifest: Manifest) -> NDArray[np.int64]:
    path = directory / TOKEN_BYTES_FILE
    _stamp(path)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest.token_bytes_sha256:
        raise MismatchError(f"{path}: differs from its sha256 in the manifest; {REBUILD}")
    try:
        array: NDArray[np.int64] = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError) as error:  # its hash is right: whoever made it, it was not us
        raise MismatchError(f"{path}: no array of numbers ({error}); {REBUILD}") from error
    if array.dtype != np.int64 or array.shape != (manifest.vocab_size,):
        raise MismatchError(
            f"{path}: {array.dtype} of shape {array.shape}, not one number per token; {REBUILD}"
        )
    return array


def _read_verified(directory: Path, manifest: Manifest) -> dict[str, list[int]]:
    try:
        raw = read_json(directory / VERIFIED_FILE)
        return dict(raw["files"]) if raw["data_id"] == manifest.data_id else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # unknown means: verify in full


def _write_verified(directory: Path, manifest: Manifest, stamps: dict[str, list[int]]) -> None:
    temporary = directory / f"{VERIFIED_FILE}.{os.getpid()}"
    try:
        temporary.write_text(json.dumps({"data_id": manifest.data_id, "files": stamps}))
        temporary.replace(directory / VERIFIED_FILE)
    except OSError:
        temporary.unlink(missing_ok=True)  # a read-only corpus is verified at every opening


class BlockOrder:
    """The order of training data: a pure function of (n_tokens, block_len, seed, block index).

    A block is `block_len` inputs plus one target token, so blocks share their edge token as
    target and as input; every token but a remainder is an input once per epoch. Epoch e is the
    stable argsort of Philox(key=(seed, e)) raw output, which numpy keeps fixed across versions.
    """

    def __init__(self, *, n_tokens: int, block_len: int, seed: int) -> None:
        self.blocks_per_epoch = _count_blocks(n_tokens, block_len)
        self._block_len = block_len
        self._seed = seed
        self._epochs: dict[int, NDArray[np.int64]] = {}

    def starts(self, first_block: int, n_blocks: int) -> NDArray[np.int64]:
        """Return the start offsets of blocks first_block .. first_block + n_blocks - 1."""
        index = np.arange(first_block, first_block + n_blocks, dtype=np.int64)
        epoch, within = np.divmod(index, self.blocks_per_epoch)
        starts = np.empty(n_blocks, dtype=np.int64)
        for number in np.unique(epoch).tolist():
            chosen = epoch == number
            starts[chosen] = self._permutation(number)[within[chosen]]
        return starts * self._block_len

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._epochs:
            key = np.array([self._seed, epoch], dtype=np.uint64)
            drawn = np.random.Philox(key=key).random_raw(self.blocks_per_epoch)
            # Only the newest epoch is kept: a run walks forward, and one may be 100 MB.
            self._epochs = {epoch: np.argsort(drawn, kind="stable")}
        return self._epochs[epoch]


def validation_starts(*, n_tokens: int, block_len: int, n_blocks: int) -> NDArray[np.int64]:
    """Return `n_blocks` start offsets spread evenly over a split, non-overlapping, always the same.

    Raises ConfigError where the split is too short.
    """
    available = _count_blocks(n_tokens, block_len)
    if n_blocks > available:
        raise ConfigError(
            f"the validation split has {n_tokens} tokens, {available} blocks of {block_len}, but "
            f"{n_blocks} are asked for; lower evaluation.n_tokens or raise data.val_fraction"
        )
    return np.arange(n_blocks, dtype=np.int64) * available // n_blocks * block_len


def _count_blocks(n_tokens: int, block_len: int) -> int:
    n_blocks = (n_tokens - 1) // block_len
    if n_blocks < 1:
        raise ConfigError(
            f"a split of {n_tokens} tokens holds no block of {block_len} tokens and its target; "
            "use more text or a shorter seq_len.seq_len"
        )
    return n_blocks
