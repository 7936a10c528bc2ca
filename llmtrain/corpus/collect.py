"""The first half of a preparation: read, clean, deduplicate, and choose what is held out."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from llmtrain.corpus.dedup import NearDuplicates
from llmtrain.corpus.sources import documents
from llmtrain.spec.data import DataConfig
from llmtrain.spec.errors import ConfigError

SPOOL_FILE = "text.spool"
DIGEST_BYTES = 16


class Collection:
    """The documents of a corpus in a temporary file, split into train and val by content hash."""

    def __init__(
        self,
        spool: IO[bytes],
        digests: list[bytes],
        lengths: list[int],
        left_out: Counter[str],
        *,
        val_fraction: float,
    ) -> None:
        self._spool = spool
        self.lengths = np.array(lengths, dtype=np.int64)
        """Bytes of each document."""
        self.left_out = left_out
        self.text_sha256 = hashlib.sha256(b"".join(digests)).hexdigest()
        held_out = _held_out(digests, val_fraction)
        self.train = np.flatnonzero(~held_out)
        """Indices of the documents that are trained on."""
        self.val = np.flatnonzero(held_out)

    def texts(self, chosen: NDArray[np.int64], *, limit: float = math.inf) -> Iterator[bytes]:
        """Yield the chosen documents in order, up to `limit` bytes."""
        offsets = np.cumsum(self.lengths) - self.lengths
        done = 0
        for index in chosen.tolist():
            if done >= limit:
                return
            self._spool.seek(int(offsets[index]))
            text = self._spool.read(int(self.lengths[index]))
            done += len(text)
            yield text


@contextmanager
def collect(
    config: DataConfig,
    building: Path,
    *,
    n_bytes: int | None,
    progress: Callable[[str, float], None],
) -> Iterator[Collection]:
    """Read a source into a temporary file in `building`, and hold it open.

    Left out and counted: documents that are empty, hold a NUL byte, are not UTF-8, equal an
    earlier one, or nearly do. Raises ConfigError where fewer than two distinct documents remain.
    """
    path = building / SPOOL_FILE
    with path.open("w+b") as spool:
        try:
            yield _read(config, spool, n_bytes, progress)
        finally:
            path.unlink(missing_ok=True)


def _read(
    config: DataConfig,
    spool: IO[bytes],
    n_bytes: int | None,
    progress: Callable[[str, float], None],
) -> Collection:
    limit = config.max_bytes or math.inf
    total = min(limit, math.inf if n_bytes is None else n_bytes)
    sieve = _Sieve(config.deduplicate)
    digests: list[bytes] = []
    lengths: list[int] = []
    kept = read = 0
    for document in documents(config):
        text = document.text
        read += len(text)
        # Against what was read where the files bound it, and kept where max_bytes does.
        share = (kept if total == limit else read) / total
        progress("read", min(share, 1.0) if math.isfinite(total) else math.nan)
        digest = hashlib.sha256(text).digest()[:DIGEST_BYTES]
        if not sieve.passes(text, digest):
            continue
        spool.write(text)
        digests.append(digest)
        lengths.append(len(text))
        kept += len(text)
        if kept >= limit:
            break
    spool.flush()
    if len(set(digests)) < 2:
        dropped = ", ".join(
            f"{count} {reason}" for reason, count in sieve.left_out.items() if count
        )
        raise ConfigError(
            f"data.name={config.name}: {len(digests)} documents with text"
            + (f" (left out: {dropped})" if dropped else "")
            + "; at least two different ones are needed, one of them to hold out"
        )
    return Collection(spool, digests, lengths, sieve.left_out, val_fraction=config.val_fraction)


class _Sieve:
    """Decides which documents stay, and counts why others do not."""

    def __init__(self, deduplicate: str) -> None:
        self.left_out: Counter[str] = Counter(
            {"empty": 0, "with_nul": 0, "not_utf8": 0, "exact_duplicates": 0, "near_duplicates": 0}
        )
        self._seen: set[bytes] | None = None if deduplicate == "none" else set()
        self._near = NearDuplicates() if deduplicate == "near" else None

    def passes(self, text: bytes, digest: bytes) -> bool:
        reason = self._reason(text, digest)
        if reason is None:
            return True
        self.left_out[reason] += 1
        return False

    def _reason(self, text: bytes, digest: bytes) -> str | None:
        if not text.strip():
            return "empty"
        # For every tokenizer alike, so that corpora differ in their tokens and not in their text.
        if b"\0" in text:
            return "with_nul"
        if not _is_utf8(text):
            return "not_utf8"
        if self._seen is not None:
            if digest in self._seen:
                return "exact_duplicates"
            self._seen.add(digest)
        if self._near is not None and self._near.seen(text):
            return "near_duplicates"
        return None


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _held_out(digests: list[bytes], val_fraction: float) -> NDArray[np.bool_]:
    # By content: equal documents land on the same side even where duplicates are kept, and a
    # document keeps its side as the corpus around it grows.
    place = np.frombuffer(b"".join(digests), dtype=">u8")[:: DIGEST_BYTES // 8]
    held_out: NDArray[np.bool_] = place / 2.0**64 < val_fraction
    if not held_out.any():
        held_out = place == place.min()
    if held_out.all():
        held_out = place != place.max()
    return held_out
