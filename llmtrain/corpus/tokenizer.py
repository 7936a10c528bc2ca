"""Bytes and byte-level BPE: text to ids and back, with the bytes of text behind every id.

TOKENIZERS_PARALLELISM is left alone: unset, the library uses threads and goes back to one in a
forked child; set to true, a child that encodes hangs (huggingface/tokenizers#187).
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from llmtrain.corpus.manifest import REBUILD, read_manifest
from llmtrain.spec.errors import ConfigError, MismatchError

SEPARATOR = "<|endoftext|>"
TOKENIZER_FILE = "tokenizer.json"
Ids = NDArray[np.uint32]


class Tokenizer(Protocol):
    """Turns UTF-8 text into token ids; every document is followed by the id `separator`."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, the separator's included."""

    @property
    def separator(self) -> int:
        """Id between documents; it stands for no text."""

    @property
    def identity(self) -> str:
        """Return the sha256 of everything that decides the ids."""

    def encode(self, texts: list[bytes]) -> list[Ids]:
        """Return one array of ids per text, without separators."""

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; separators become newlines, broken UTF-8 becomes U+FFFD."""

    def token_bytes(self) -> NDArray[np.int64]:
        """Return the bytes of text per id, shape (vocab_size,); 0 for the separator."""


class ByteTokenizer:
    """One token a byte; byte 0 separates documents, so text must not contain it."""

    vocab_size = 256
    separator = 0
    identity = hashlib.sha256(b"llmtrain bytes, separator 0").hexdigest()

    def encode(self, texts: list[bytes]) -> list[Ids]:
        """Return the bytes as ids."""
        return [np.frombuffer(text, dtype=np.uint8).astype(np.uint32) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids."""
        return bytes(ids).replace(b"\0", b"\n").decode("utf-8", errors="replace")

    def token_bytes(self) -> NDArray[np.int64]:
        """Return 1 for every byte but the separator."""
        return np.array([0] + [1] * 255, dtype=np.int64)


class BpeTokenizer:
    """Byte-level BPE (GPT-2's pattern and byte alphabet) of the `tokenizers` library."""

    def __init__(self, serialised: str) -> None:
        self._tokenizer = _library().Tokenizer.from_str(serialised)
        # Text that spells the separator out stays text: it must not end a document.
        self._tokenizer.encode_special_tokens = True
        self.serialised = serialised
        self.identity = hashlib.sha256(serialised.encode()).hexdigest()
        self.vocab_size: int = self._tokenizer.get_vocab_size()
        self.separator: int = self._tokenizer.token_to_id(SEPARATOR)

    def encode(self, texts: list[bytes]) -> list[Ids]:
        """Return the ids of a batch; `Encoding` objects weigh 90 bytes per byte of text."""
        strings = [text.decode("utf-8") for text in texts]
        encodings = self._tokenizer.encode_batch_fast(strings, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids."""
        pieces: list[str] = []
        run: list[int] = []
        for token in [*ids, self.separator]:
            if token == self.separator:
                pieces.append(self._tokenizer.decode(run, skip_special_tokens=False))
                run = []
            else:
                run.append(int(token))
        return "\n".join(pieces)

    def token_bytes(self) -> NDArray[np.int64]:
        """Return the length of each id's spelling: one character of the byte alphabet is a byte."""
        spelled = [len(self._tokenizer.id_to_token(i)) for i in range(self.vocab_size)]
        spelled[self.separator] = 0
        return np.array(spelled, dtype=np.int64)


def train_bpe(texts: Iterable[str], *, vocab_size: int) -> BpeTokenizer:
    """Train byte-level BPE with `vocab_size` ids: 256 bytes, the separator, and merges.

    Raises ConfigError where the text has too few distinct pairs for that many ids.
    """
    library = _library()
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    found = tokenizer.get_vocab_size()
    if found != vocab_size:
        raise ConfigError(
            f"data.vocab_size={vocab_size} is out of reach: this text yields only {found} BPE "
            f"tokens; set data.vocab_size={found} or less, or add text"
        )
    return BpeTokenizer(tokenizer.to_str())


def load(directory: Path) -> Tokenizer:
    """Return the tokenizer of a prepared corpus; MismatchError where its file was altered."""
    manifest = read_manifest(directory)
    if manifest.tokenizer == "bytes":
        return ByteTokenizer()
    path = directory / TOKENIZER_FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MismatchError(f"{path}: missing though its manifest names it; {REBUILD}") from error
    if hashlib.sha256(content).hexdigest() != manifest.tokenizer_id:
        raise MismatchError(f"{path}: differs from its sha256 in the manifest; {REBUILD}")
    try:
        tokenizer = BpeTokenizer(content.decode("utf-8"))
    except Exception as error:  # the library's errors have no type of their own
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise MismatchError(f"{path}: no tokenizer ({first}); {REBUILD}") from error
    if tokenizer.vocab_size != manifest.vocab_size:
        found = f"{tokenizer.vocab_size} ids, its manifest says {manifest.vocab_size}"
        raise MismatchError(f"{path}: {found}; {REBUILD}")
    return tokenizer


def _library() -> Any:
    try:
        import tokenizers  # noqa: PLC0415 - bytes need no tokenizer library
        import tokenizers.decoders  # noqa: PLC0415
        import tokenizers.models  # noqa: PLC0415
        import tokenizers.pre_tokenizers  # noqa: PLC0415
        import tokenizers.trainers  # noqa: PLC0415
    except ImportError as error:
        message = "data.tokenizer=bpe needs the tokenizers package: pip install tokenizers"
        raise ConfigError(message) from error
    return tokenizers
