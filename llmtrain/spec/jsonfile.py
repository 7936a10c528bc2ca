"""The door for JSON on disk: too big, too deep or no JSON is a ValueError, never a crash."""

import json
import os
from pathlib import Path
from typing import Any

MAX_BYTES = 2**28
"""More than any file this program writes."""


def read_json(path: Path) -> Any:
    """Return what a JSON file holds. Raises OSError, and ValueError for anything but sound JSON.

    NaN and Infinity are no JSON; nothing here writes them.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise ValueError(f"{size} bytes of JSON, more than {MAX_BYTES}")
        return parse_json(file.read(size).decode("utf-8"))


def parse_json(text: bytes | str) -> Any:
    """Return a JSON value. Raises ValueError where it is none, or nested beyond the interpreter."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
