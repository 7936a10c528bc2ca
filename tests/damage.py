"""What disks do to files, by chance: one bit, an end that is missing, a block of zeros."""

import os
import random
from pathlib import Path

BLOCK = 64


def flip(path: Path, rng: random.Random, _other: Path | None = None) -> None:
    """Turn one bit."""
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def cut(path: Path, rng: random.Random, _other: Path | None = None) -> None:
    """Drop the end."""
    os.truncate(path, rng.randrange(path.stat().st_size))


def zero(path: Path, rng: random.Random, _other: Path | None = None) -> None:
    """Overwrite a block with zeros, which changes nothing where there were zeros."""
    content = bytearray(path.read_bytes())
    first = rng.randrange(len(content) - BLOCK)
    content[first : first + BLOCK] = bytes(BLOCK)
    path.write_bytes(content)
