"""Nested mappings on one level."""

from collections.abc import Mapping
from typing import Any


def flatten(nested: Mapping[str, Any], sign: str, prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as one level, its keys joined by `sign`, as in `model.d_model`."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, sign, f"{prefix}{key}{sign}")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
