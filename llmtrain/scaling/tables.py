"""The CSV door: any table of runs with params, tokens and loss."""

import csv
import hashlib
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmtrain.scaling.law import FLOPS_PER_PARAM_TOKEN, Array
from llmtrain.scaling.runs import Conventions, Exclusion, Labels, Runs
from llmtrain.scaling.texts import Texts
from llmtrain.spec.errors import ConfigError, FitRefusedError

REQUIRED = ("params", "tokens", "loss")
DECLARED = ("params_convention", "flops_convention", "tokenizer", "data", "eval_data")
"""Optional columns that must hold one value within a group."""
DONE = ("done", "finished", "completed", "success", "")


def read_table(path: Path) -> Runs:
    """Read a CSV of runs; extra columns are ignored.

    Raises ConfigError for a missing column (naming all that are missing) or a bad cell (naming row
    and column), and FitRefusedError where one group declares two conventions, tokenizers or data.
    """
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text; save it as a UTF-8 CSV") from error
    reader = csv.DictReader(io.StringIO(text))
    columns = [name.strip() for name in reader.fieldnames or []]
    reader.fieldnames = columns
    _check_columns(path, columns)
    rows = [row for row in reader if any(_text(row, name) for name in columns)]
    if not rows:
        raise ConfigError(f"{path} has a header and no rows")
    kept, exclusions = _finished(rows, columns)
    if not kept:
        raise FitRefusedError(f"{path}: none of {len(rows)} rows is done; finish some runs first")
    runs = _columns(path, [rows[i] for i in kept], [i + 2 for i in kept], columns, raw, exclusions)
    _check_declared(path, [rows[i] for i in kept], columns, runs.group)
    return runs


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        found = ", ".join(columns) or "nothing"
        raise ConfigError(f"{path}: missing column {', '.join(missing)}; found {found}")
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    if twice:
        raise ConfigError(f"{path}: column {', '.join(twice)} appears twice; keep one")


def _text(row: dict[str, str], name: str) -> str:
    return (row.get(name) or "").strip()


def _finished(
    rows: Sequence[dict[str, str]], columns: Sequence[str]
) -> tuple[list[int], tuple[Exclusion, ...]]:
    """Split rows by `status`, and drop rows with annealed=false among annealed ones."""
    kept, exclusions = [], []
    annealed = {i: _text(row, "annealed").lower() for i, row in enumerate(rows)}
    mixed = "annealed" in columns and any(v in ("true", "1", "yes") for v in annealed.values())
    for i, row in enumerate(rows):
        name = _text(row, "run_id") or f"row {i + 2}"
        status = _text(row, "status")
        if "status" in columns and status.lower() not in DONE:
            exclusions.append(Exclusion(run_id=name, reason=f"status {status}"))
        elif mixed and annealed[i] in ("false", "0", "no"):
            reason = "not annealed, among annealed runs"
            exclusions.append(Exclusion(run_id=name, reason=reason))
        else:
            kept.append(i)
    return kept, tuple(exclusions)


def _number(path: Path, row: dict[str, str], name: str, line: int) -> float:
    text = _text(row, name)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(
            f"{path}: row {line}, column {name}: {text!r} must be a finite number above 0"
        )
    return value


def _optional(row: dict[str, str], name: str) -> float:
    try:
        return float(_text(row, name))
    except ValueError:
        return math.nan


def _columns(
    path: Path,
    rows: Sequence[dict[str, str]],
    lines: Sequence[int],
    columns: Sequence[str],
    raw: bytes,
    exclusions: tuple[Exclusion, ...],
) -> Runs:
    def numbers(name: str) -> Array:
        pairs = zip(rows, lines, strict=True)
        return np.array([_number(path, row, name, line) for row, line in pairs], dtype=np.float64)

    def optional(name: str) -> Array:
        return np.array([_optional(row, name) for row in rows], dtype=np.float64)

    def labels(name: str, default: Sequence[str]) -> Labels:
        pairs = zip(rows, default, strict=True)
        return np.array([_text(row, name) or other for row, other in pairs], dtype=np.str_)

    def declared(name: str) -> str:
        values = {_text(row, name) for row in rows} - {""}
        return values.pop() if len(values) == 1 else "undeclared"

    params, tokens = numbers("params"), numbers("tokens")
    imputed = "flops" not in columns
    given = "6ND" if imputed else declared("flops_convention")
    return Runs(
        source=str(path),
        sha256=hashlib.sha256(raw).hexdigest(),
        run_id=labels("run_id", [f"row {line}" for line in lines]),
        group=labels("group", ["all"] * len(rows)),
        params=params,
        tokens=tokens,
        flops=FLOPS_PER_PARAM_TOKEN * params * tokens if imputed else numbers("flops"),
        budget=np.full(len(rows), np.nan),
        loss=numbers("loss"),
        seed=optional("seed"),
        d_model=optional("d_model"),
        n_layers=optional("n_layers"),
        conventions=Conventions(
            params=declared("params_convention"),
            flops=given,
            flops_imputed=imputed,
            texts=Texts(
                data=declared("data"),
                tokenizer=declared("tokenizer"),
                evaluation=declared("eval_data"),
            ),
        ),
        exclusions=exclusions,
        counts={},
        records=(),
    )


def _check_declared(
    path: Path, rows: Sequence[dict[str, str]], columns: Sequence[str], group: Labels
) -> None:
    for name in DECLARED:
        if name not in columns:
            continue
        for label in np.unique(group):
            pairs = zip(rows, group, strict=True)
            values = sorted({_text(row, name) for row, own in pairs if own == label})
            if len(values) > 1:
                raise FitRefusedError(
                    f"{path}: group {label} mixes {name} {' and '.join(map(repr, values))}; "
                    "give each its own group"
                )
