"""Near duplicates by MinHash and banded lookup.

Source: Broder 1997 (resemblance by min-wise hashing); Lee et al. 2022 (arXiv 2107.06499) for
5-word shingles of training text.
"""

import numpy as np
from numpy.typing import NDArray

SHINGLE_WORDS = 5
N_BANDS = 16
ROWS_PER_BAND = 6
THRESHOLD = 0.7
"""Estimated Jaccard similarity of the word shingles from which on a document is left out.

16 bands of 6 find a pair of similarity 0.8 with probability 1 - (1 - 0.8^6)^16 = 0.99; the
estimate from 96 hashes then has a standard error of 0.04."""

Hashes = NDArray[np.uint64]

# Odd 64-bit constants: multiplication by one is a permutation of the 64-bit numbers. Fixed raw
# output of Philox, so that the same text gives the same corpus under every numpy version.
_RANDOM = np.random.Philox(key=np.array([0x6C6C6D, 0], dtype=np.uint64))
_BYTE_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_BYTE_VALUE: Hashes = _RANDOM.random_raw(256) | np.uint64(1)
_WORD_FACTOR: Hashes = _RANDOM.random_raw(SHINGLE_WORDS) | np.uint64(1)
_MINHASH_FACTOR: Hashes = _RANDOM.random_raw(N_BANDS * ROWS_PER_BAND) | np.uint64(1)
_MINHASH_OFFSET: Hashes = _RANDOM.random_raw(N_BANDS * ROWS_PER_BAND)

_IN_WORD = np.array([byte >= 128 or chr(byte).isalnum() or chr(byte) == "_" for byte in range(256)])


def shingle_hashes(text: bytes) -> Hashes:
    """Return one 64-bit hash per distinct run of 5 words, or one for a text of fewer words."""
    codes = np.frombuffer(text, dtype=np.uint8)
    inside = np.concatenate([[False], _IN_WORD[codes], [False]])
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    begins, ends = edges[0::2], edges[1::2]
    if not begins.size:
        return np.empty(0, dtype=np.uint64)
    # Polynomial hash of each word from prefix sums: sum of value[c_i] * factor^(i - begin), modulo
    # 2^64, with the shift by `begin` undone through the factor's inverse.
    powers = _powers(_BYTE_FACTOR, codes.size)
    inverse = _powers(np.uint64(pow(int(_BYTE_FACTOR), -1, 2**64)), codes.size)
    prefix = np.concatenate([[np.uint64(0)], np.cumsum(_BYTE_VALUE[codes] * powers)])
    words = (prefix[ends] - prefix[begins]) * inverse[begins]
    width = min(SHINGLE_WORDS, words.size)
    shingles = np.zeros(words.size - width + 1, dtype=np.uint64)
    for k in range(width):
        shingles += words[k : k + shingles.size] * _WORD_FACTOR[k]
    return np.unique(_mix(shingles))


def signature(shingles: Hashes) -> Hashes:
    """Return the minimum of each of 96 permutations over the shingles, shape (96,)."""
    smallest = np.full(_MINHASH_FACTOR.size, np.iinfo(np.uint64).max, dtype=np.uint64)
    for first in range(0, shingles.size, 4096):  # keeps the table inside the cache
        block = shingles[first : first + 4096]
        table = block * _MINHASH_FACTOR[:, None] + _MINHASH_OFFSET[:, None]
        np.minimum(smallest, table.min(axis=1), out=smallest)
    return smallest


class NearDuplicates:
    """Remembers documents by signature and recognises later ones that nearly equal one of them."""

    def __init__(self) -> None:
        self._signatures: list[Hashes] = []
        self._buckets: dict[tuple[int, bytes], list[int]] = {}

    def seen(self, text: bytes) -> bool:
        """Return whether a remembered document is nearly equal to `text`; else remember it."""
        shingles = shingle_hashes(text)
        if not shingles.size:
            return False
        own = signature(shingles)
        rows = own.reshape(N_BANDS, ROWS_PER_BAND)
        keys = [(band, rows[band].tobytes()) for band in range(N_BANDS)]
        candidates = {number for key in keys for number in self._buckets.get(key, ())}
        for number in candidates:
            if float(np.mean(self._signatures[number] == own)) >= THRESHOLD:
                return True
        for key in keys:
            self._buckets.setdefault(key, []).append(len(self._signatures))
        self._signatures.append(own)
        return False


def _powers(factor: np.uint64, n: int) -> Hashes:
    powers = np.full(n, factor, dtype=np.uint64)
    powers[:1] = 1
    return np.cumprod(powers)


def _mix(values: Hashes) -> Hashes:
    # The finaliser of SplitMix64 (Steele et al. 2014): every input bit reaches every output bit.
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
