"""Refusals shared by the configuration classes: each names the value and the rule."""

import math
import re

from llmtrain.spec.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def shown(value: object) -> str:
    """Return a value as an error shows it: as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def check(ok: bool, message: str) -> None:
    """Raise ConfigError with `message` unless `ok`."""
    if not ok:
        raise ConfigError(message)


def check_name(field: str, value: str) -> None:
    """Refuse a name that could leave its folder or trouble a shell."""
    check(
        NAME.fullmatch(value) is not None,
        f"{field}={shown(value)} must match {NAME.pattern} (letters, digits, '.', '_', '-'; at "
        "most 64)",
    )


def check_positive(field: str, value: float) -> None:
    """Refuse zero, negative numbers, NaN and infinity."""
    check(
        math.isfinite(value) and value > 0,
        f"{field}={shown(value)} must be a finite number above 0",
    )


def check_folder(field: str, value: str) -> None:
    """Refuse an empty path, which would mean the current folder."""
    check(value.strip() != "", f"{field} is empty: name a folder")


def check_between(field: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside [low, high], NaN included."""
    check(low <= value <= high, f"{field}={shown(value)} must lie in [{low:g}, {high:g}]")
