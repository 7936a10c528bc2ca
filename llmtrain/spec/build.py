"""Mapping -> frozen dataclass, strictly; and the hash that names a run."""

import dataclasses
import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from llmtrain.spec.check import shown
from llmtrain.spec.errors import ConfigError
from llmtrain.spec.redact import refuse_secret

T = TypeVar("T")


def build(kind: type[T], raw: object, path: str = "") -> T:
    """Turn a resolved mapping into the dataclass `kind`, field by field.

    Accepts an int for a float, a whole float for an int, numbers written as text where YAML reads
    `1e16` as a string, and lists for tuples. Raises ConfigError with the dotted path for anything
    unknown, missing or mistyped, and for what the dataclass itself refuses.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{path or kind.__name__}: expected a mapping, got {shown(raw)}")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in raw:
        if key not in fields:
            near = _nearest(str(key), list(fields))
            raise ConfigError(f"{_join(path, str(key))}: unknown key{near}")
    hints = _hints(kind)  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name in fields:
        if name not in raw:
            raise ConfigError(f"{_join(path, name)}: missing key")
        values[name] = _convert(hints[name], raw[name], _join(path, name))
    return kind(**values)


def config_hash(value: object) -> str:
    """Return the sha256 (hex) of a dataclass or mapping; equal content gives equal hashes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    """Return the field types; reading them anew would be most of the work of building."""
    return typing.get_type_hints(kind)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _nearest(key: str, known: list[str]) -> str:
    import difflib  # noqa: PLC0415 - only on the way to an error

    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known keys: {', '.join(known)}"


def _convert(kind: Any, raw: Any, path: str) -> Any:
    origin = get_origin(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return build(kind, raw, path)
    if origin in (Union, types.UnionType):
        return _convert_optional(kind, raw, path)
    if origin is Literal:
        if raw not in get_args(kind) or isinstance(raw, bool):
            choices = ", ".join(map(str, get_args(kind)))
            raise ConfigError(f"{path}: expected one of {choices}; got {shown(raw)}")
        return raw
    if origin is tuple:
        if not isinstance(raw, list | tuple):
            raise ConfigError(f"{path}: expected a list, as in [a,b]; got {shown(raw)}")
        item = get_args(kind)[0]
        return tuple(_convert(item, value, f"{path}[{i}]") for i, value in enumerate(raw))
    if origin is dict:
        if not isinstance(raw, Mapping):
            raise ConfigError(f"{path}: expected a mapping, got {shown(raw)}")
        item = get_args(kind)[1]
        return {str(k): _convert(item, value, f"{path}.{k}") for k, value in raw.items()}
    return _convert_scalar(kind, raw, path)


def _convert_optional(kind: Any, raw: Any, path: str) -> Any:
    inner = [option for option in get_args(kind) if option is not type(None)]
    if raw is None:
        return None
    return _convert(inner[0], raw, path)


def _convert_scalar(kind: Any, raw: Any, path: str) -> Any:
    wrong = ConfigError(f"{path}: expected {kind.__name__}, got {shown(raw)}")
    if kind is bool or kind is str:
        if not isinstance(raw, kind):
            raise wrong
        if isinstance(raw, str):
            refuse_secret(path, raw)
        return raw
    if isinstance(raw, bool):
        raise wrong
    if kind is float:
        try:
            value = float(raw) if isinstance(raw, int | float | str) else None
        except (ValueError, OverflowError):
            value = None
        if value is None or not math.isfinite(value):
            raise ConfigError(f"{path}: expected a finite number, got {shown(raw)}")
        return value
    if kind is int:
        if isinstance(raw, float) and raw.is_integer() and abs(raw) < 2**53:
            return int(raw)
        if not isinstance(raw, int) or abs(raw) >= 2**63:
            raise wrong
        return raw
    raise TypeError(f"{path}: unsupported field type {kind!r}")
