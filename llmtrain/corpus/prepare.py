"""Documents -> token shards and a manifest: built beside, moved into place whole."""

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from llmtrain.corpus.collect import Collection, collect
from llmtrain.corpus.manifest import (
    REBUILD,
    SCHEMA,
    TOKEN_BYTES_FILE,
    Manifest,
    ShardInfo,
    SplitInfo,
    read_manifest,
    write_manifest,
)
from llmtrain.corpus.shards import STORED
from llmtrain.corpus.sources import Survey, survey
from llmtrain.corpus.tokenizer import (
    TOKENIZER_FILE,
    ByteTokenizer,
    Tokenizer,
    train_bpe,
)
from llmtrain.spec.build import config_hash
from llmtrain.spec.data import DataConfig
from llmtrain.spec.disk import disk_error
from llmtrain.spec.errors import ConfigError, MismatchError

Progress = Callable[[str, float], None]
"""Called with a stage and the share of it that is done; nan where the whole is unknown."""

SHARD_TOKENS = 2**27
BATCH_BYTES = 2**22
"""Text tokenised at once: enough for the tokenizer's threads, little enough for memory."""
BPE_TRAINING_BYTES = 2**28
"""Training text that the BPE merges are learned from; more changes rare merges only."""


def corpus_dir(config: DataConfig) -> Path:
    """Return root/<name>-<hash of the settings and files that decide the content>."""
    return _directory(config, survey(config))


def prepare(config: DataConfig, *, progress: Progress | None = None) -> Path:
    """Return the folder of the prepared corpus, building it where it is absent.

    Two callers at once build once. A build that fails or is killed leaves nothing that is read;
    a failed one leaves nothing at all. Raises ConfigError for a source that cannot be used, and
    MismatchError where the folder is there but damaged.
    """
    found = survey(config)
    directory = _directory(config, found)
    if directory.exists():
        return _checked(directory)
    root = directory.parent
    made_root = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f".{directory.name}.lock"):
            if directory.exists():
                return _checked(directory)
            building = root / f".{directory.name}.building"
            shutil.rmtree(building, ignore_errors=True)  # what a killed builder left
            try:
                building.mkdir()
                _build(config, found, building, progress or (lambda _stage, _share: None))
                building.rename(directory)
            finally:
                shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        if (told := disk_error(error, Path(error.filename or directory))) is not None:
            raise told from error
        where = error.filename or directory
        raise ConfigError(
            f"{where}: {error.strerror or error}; choose another data.root"
        ) from error
    finally:
        if made_root:
            with contextlib.suppress(OSError):
                root.rmdir()  # refuses a folder that holds anything
    return directory


def known_tokens(config: DataConfig) -> int | None:
    """Return the tokens of the training split where the corpus has been prepared; write nothing."""
    directory = corpus_dir(config) if config.source != "hub" else None
    if directory is None or not directory.is_dir():
        return None
    return read_manifest(directory).train.n_tokens


def _directory(config: DataConfig, found: Survey) -> Path:
    content = dataclasses.asdict(config)
    del content["root"], content["max_epochs"]
    decided = config_hash({"schema": SCHEMA, "files": found.fingerprint, **content})
    return Path(config.root) / f"{config.name}-{decided[:8]}"


def _checked(directory: Path) -> Path:
    try:
        manifest = read_manifest(directory)
    except ConfigError as error:
        raise MismatchError(f"{directory}: exists without a manifest; {REBUILD}") from error
    for split in (manifest.train, manifest.val):
        path = directory / split.file
        expected = split.n_tokens * STORED[manifest.dtype].itemsize
        if not path.is_file() or path.stat().st_size != expected:
            raise MismatchError(f"{path}: missing or not {expected} bytes long; {REBUILD}")
    return directory


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    while True:
        file = path.open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
        # The holder before us unlinks the file as it leaves: then our lock is on no name.
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                break
        file.close()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _build(config: DataConfig, found: Survey, building: Path, progress: Progress) -> None:
    with collect(config, building, n_bytes=found.n_bytes, progress=progress) as collection:
        tokenizer: Tokenizer = ByteTokenizer()
        if config.tokenizer == "bpe":
            progress("train tokenizer", math.nan)
            training = collection.texts(collection.train, limit=BPE_TRAINING_BYTES)
            trained = train_bpe((t.decode() for t in training), vocab_size=config.vocab_size)
            _write(building / TOKENIZER_FILE, trained.serialised.encode())
            tokenizer = trained
        dtype: Literal["uint16", "uint32"]
        dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
        splits = {}
        for split, chosen in (("train", collection.train), ("val", collection.val)):
            with (building / f"{split}.bin").open("wb") as file:
                writer = _SplitWriter(file, f"{split}.bin", STORED[dtype])
                total = int(collection.lengths[chosen].sum())
                for batch in _batches(collection.texts(chosen)):
                    writer.add(batch, tokenizer)
                    progress(f"tokenize {split}", writer.n_bytes / total)
                splits[split] = writer.finish()
        token_bytes = io.BytesIO()
        np.save(token_bytes, tokenizer.token_bytes(), allow_pickle=False)
        _write(building / TOKEN_BYTES_FILE, token_bytes.getvalue())
        manifest = Manifest(
            schema=SCHEMA,
            name=config.name,
            source={**found.facts, **_facts(config, collection)},
            tokenizer=config.tokenizer,
            tokenizer_id=tokenizer.identity,
            vocab_size=tokenizer.vocab_size,
            dtype=dtype,
            train=splits["train"],
            val=splits["val"],
            text_sha256=collection.text_sha256,
            token_bytes_sha256=hashlib.sha256(token_bytes.getvalue()).hexdigest(),
        )
    write_manifest(building, manifest)


def _facts(config: DataConfig, collection: Collection) -> dict[str, str]:
    facts = {"deduplicate": config.deduplicate, "val_fraction": f"{config.val_fraction:g}"}
    return facts | {reason: str(count) for reason, count in collection.left_out.items()}


def _batches(texts: Iterator[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


class _SplitWriter:
    """Writes one split's file and hashes it shard by shard on the way."""

    def __init__(
        self, file: IO[bytes], name: str, dtype: np.dtype[np.unsignedinteger[Any]]
    ) -> None:
        self.n_bytes = 0
        self._file = file
        self._name = name
        self._dtype = dtype
        self._shards: list[ShardInfo] = []
        self._hash = hashlib.sha256()
        self._in_shard = 0
        self._n_documents = 0

    def add(self, texts: list[bytes], tokenizer: Tokenizer) -> None:
        """Append documents, each followed by the separator."""
        separator = np.array([tokenizer.separator], dtype=self._dtype)
        parts = [part for ids in tokenizer.encode(texts) for part in (ids, separator)]
        tokens = np.concatenate(parts).astype(self._dtype)
        self.n_bytes += sum(map(len, texts))
        self._n_documents += len(texts)
        while tokens.size:
            part = tokens[: SHARD_TOKENS - self._in_shard]
            self._file.write(part.data)
            self._hash.update(part.data)
            self._in_shard += part.size
            tokens = tokens[part.size :]
            if self._in_shard == SHARD_TOKENS:
                self._end_shard()

    def finish(self) -> SplitInfo:
        """Flush to the disk and return the counts."""
        if self._in_shard:
            self._end_shard()
        self._file.flush()
        os.fsync(self._file.fileno())
        return SplitInfo(
            n_tokens=sum(shard.n_tokens for shard in self._shards),
            n_bytes=self.n_bytes,
            n_documents=self._n_documents,
            shards=tuple(self._shards),
        )

    def _end_shard(self) -> None:
        digest = self._hash.hexdigest()
        self._shards.append(ShardInfo(file=self._name, n_tokens=self._in_shard, sha256=digest))
        self._hash = hashlib.sha256()
        self._in_shard = 0
