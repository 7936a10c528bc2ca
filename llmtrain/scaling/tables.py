"""The CSV door: any table of runs with params, tokens and loss."""

import csv
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from llmtrain.scaling.budget_column import flops_from_budgets
from llmtrain.scaling.headers import DECLARED, match_columns
from llmtrain.scaling.law import Array
from llmtrain.scaling.runs import TRAITS, Conventions, Exclusion, Labels, Runs
from llmtrain.scaling.shapes import AGREE, ShapeCounts, count_shapes, name_count
from llmtrain.scaling.texts import UNDECLARED, Texts, loss_unit
from llmtrain.spec.errors import ConfigError, FitRefusedError

DONE = ("done", "finished", "completed", "complete", "success")
YES, NO = ("true", "1", "yes"), ("false", "0", "no")
UNKNOWN = ("", "nan", "none", "null", "na", "n/a", "-")
"""Cells of a seed that nobody noted."""
ALL = "all"
"""Group of rows that name none."""
GIVEN = "as given"
"""Name of a count that nobody names, beside those computed from shapes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableOptions:
    """How a table is read, where its header does not say."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Field -> name of the column that holds it."""
    params_convention: str | None = None
    flops_convention: str | None = None


AS_IT_SAYS = TableOptions()


def read_table(path: Path, options: TableOptions = AS_IT_SAYS) -> Runs:
    """Read a CSV of runs; columns that nothing reads are named in the remarks.

    Raises ConfigError for a missing column (naming all that are missing), a bad cell (naming row
    and column) or a run id of two sizes, and FitRefusedError where one group declares two
    conventions, tokenizers or data, or the table two metrics.
    """
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text; save it as a UTF-8 CSV") from error
    first = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text), delimiter=max(",;\t", key=first.count))
    columns, unread = match_columns(path, reader.fieldnames or [], options.columns)
    reader.fieldnames = columns
    rows = [row for row in reader if any(_text(row, name) for name in columns)]
    if not rows:
        raise ConfigError(f"{path} has a header and no rows")
    kept, exclusions = _finished(rows, columns)
    if not kept:
        raise FitRefusedError(f"{path}: none of {len(rows)} rows is done; finish some runs first")
    # A row that spills over its header would hide its cells under None.
    spilled = [i + 2 for i, row in enumerate(rows) if None in row]
    if spilled:
        raise ConfigError(f"{path}: row {spilled[0]} has more cells than the header; quote commas")
    table = _Table(
        path=path, rows=[rows[i] for i in kept], lines=[i + 2 for i in kept], columns=columns
    )
    runs = table.runs(options, hashlib.sha256(raw).hexdigest(), exclusions)
    table.check_declared(runs.group)
    _check_sizes(runs)
    note = (f"columns that nothing reads: {', '.join(unread)}",) if unread else ()
    return replace(runs, remarks=(*runs.remarks, *note))


def _text(row: dict[str, str], name: str) -> str:
    return (row.get(name) or "").strip()


def _finished(
    rows: Sequence[dict[str, str]], columns: Sequence[str]
) -> tuple[list[int], tuple[Exclusion, ...]]:
    """Split rows by `status`, and drop rows with annealed=false among a group's annealed ones."""
    kept, exclusions = [], []
    annealed = {_text(row, "group") for row in rows if _text(row, "annealed").lower() in YES}
    reported = any(_text(row, "status") for row in rows)
    for i, row in enumerate(rows):
        name = _text(row, "run_id") or f"row {i + 2}"
        status = _text(row, "status")
        reason = ""
        if reported and status.lower() not in DONE:
            reason = f"status {status}" if status else "no status, where other rows have one"
        elif _text(row, "group") in annealed and _text(row, "annealed").lower() not in YES:
            known = _text(row, "annealed").lower() in NO
            reason = "not annealed, among annealed runs" if known else "annealed is not known"
        if reason:
            group = _text(row, "group") or ALL
            exclusions.append(Exclusion(run_id=name, reason=reason, group=group))
        else:
            kept.append(i)
    return kept, tuple(exclusions)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Table:
    """Rows of cells under known names."""

    path: Path
    rows: list[dict[str, str]]
    lines: list[int]
    """Line of each row in the file."""
    columns: list[str]

    def numbers(self, name: str) -> Array:
        """Return a column whose every cell must be a finite number above 0."""
        pairs = zip(self.rows, self.lines, strict=True)
        return np.array([self._number(row, name, line) for row, line in pairs], dtype=np.float64)

    def optional(self, name: str, *, strict: bool = False) -> Array:
        """Return a column with NaN for blank cells, and for unreadable ones unless `strict`."""
        pairs = zip(self.rows, self.lines, strict=True)
        return np.array(
            [
                self._number(row, name, line) if strict and _text(row, name) else _float(row, name)
                for row, line in pairs
            ],
            dtype=np.float64,
        )

    def labels(self, name: str, default: Sequence[str]) -> Labels:
        """Return a column of text, `default` where it is blank."""
        pairs = zip(self.rows, default, strict=True)
        return np.array([_text(row, name) or other for row, other in pairs], dtype=np.str_)

    def seeds(self) -> Array:
        """Return the seeds; those that are text are numbered after the others, in order."""
        seeds = self.optional("seed")
        known = seeds[np.isfinite(seeds)]
        following = math.floor(known.max(initial=-1.0)) + 1
        numbers: dict[str, float] = {}
        for i, row in enumerate(self.rows):
            label = _text(row, "seed")
            if not math.isfinite(seeds[i]) and label.lower() not in UNKNOWN:
                seeds[i] = numbers.setdefault(label, float(following + len(numbers)))
        return seeds

    def declared(self, name: str, option: str | None) -> str:
        """Return the one convention that the column or the option names."""
        values = sorted({_text(row, name) for row in self.rows} - {""})
        if option is not None and values not in ([], [option]):
            raise ConfigError(f"{name}={option}, but {self.path} says {' and '.join(values)}")
        if option is not None:
            return option
        return values[0] if len(values) == 1 else UNDECLARED

    def texts(self) -> Texts:
        """Return the texts that the table declares, under either name of a column."""

        def first(*names: str) -> str:
            found = (self.declared(name, None) for name in names)
            return next((value for value in found if value != UNDECLARED), UNDECLARED)

        units = sorted({loss_unit(_text(row, "metric")) for row in self.rows})
        if len(units) > 1:
            raise FitRefusedError(
                f"{self.path} mixes losses in {' and '.join(units)}; give each metric its own file"
            )
        return Texts(
            metric=units[0] if "metric" in self.columns else UNDECLARED,
            data=first("data", "dataset"),
            corpus=first("data_id"),
            tokenizer=first("tokenizer", "tokenizer_id"),
            evaluation=first("eval_data", "eval_set"),
        )

    def runs(self, options: TableOptions, sha256: str, exclusions: tuple[Exclusion, ...]) -> Runs:
        """Return the columns as the table of runs."""
        n = len(self.rows)
        params, tokens = self.numbers("params"), self.numbers("tokens")
        budget = self.optional("budget", strict=True)
        remarks: list[str] = []
        if "flops" in self.columns:
            flops, imputed = self.numbers("flops"), False
        else:
            flops, imputed = flops_from_budgets(self.path, self.lines, params, tokens, budget)
            if not imputed:
                remarks.append("no flops column: C is the budget column")
        shapes = count_shapes(self.rows, self.columns)
        counted = self.declared("params_convention", options.params_convention)
        costed = "6ND" if imputed else self.declared("flops_convention", options.flops_convention)
        by_flops = {kind: own * tokens for kind, own in shapes.flops_per_token.items()}
        counted, said = _recognise("params", counted, params, shapes.params)
        costed, also = _recognise("flops", costed, flops, {} if imputed else by_flops)
        runs = Runs(
            source=str(self.path),
            sha256=sha256,
            run_id=self.labels("run_id", [f"row {line}" for line in self.lines]),
            group=self.labels("group", [ALL] * n),
            params=params,
            tokens=tokens,
            flops=flops,
            budget=budget,
            loss=self.numbers("loss"),
            seed=self.seeds(),
            d_model=self.optional("d_model"),
            n_layers=self.optional("n_layers"),
            trunk=self.labels("trunk", [""] * n),
            lr_multiplier=self.optional("lr_multiplier", strict=True),
            conventions=Conventions(
                params=counted, flops=costed, flops_imputed=imputed, texts=self.texts()
            ),
            exclusions=exclusions,
            counts={},
            flops_counts={},
            traits={name: self.labels(name, [""] * n) for name in TRAITS},
            code=self.labels("code_id", [""] * n),
            remarks=(*remarks, *shapes.remarks, *said, *also),
            records=(),
        )
        return _with_shapes(runs, shapes, by_flops)

    def check_declared(self, group: Labels) -> None:
        """Refuse a group that declares two of what must be one."""
        for name in DECLARED:
            if name not in self.columns:
                continue
            for label in np.unique(group):
                pairs = zip(self.rows, group, strict=True)
                values = sorted({_text(row, name) for row, own in pairs if own == label})
                if len(values) > 1:
                    shown = " and ".join(map(repr, values[:4]))
                    raise FitRefusedError(
                        f"{self.path}: group {label} mixes {name} {shown}; give each its own group"
                    )

    def _number(self, row: dict[str, str], name: str, line: int) -> float:
        value = _float(row, name)
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(
                f"{self.path}: row {line}, column {name}: {_text(row, name)!r} must be a finite "
                "number above 0; correct it, or give the row a status other than done"
            )
        return value


def _check_sizes(runs: Runs) -> None:
    """Refuse a run id of several sizes: only its row of most tokens would be read."""
    sizes: dict[tuple[str, str], float] = {}
    for group, name, n in zip(runs.group, runs.run_id, runs.params, strict=True):
        first = sizes.setdefault((str(group), str(name)), float(n))
        if first != n:
            raise ConfigError(
                f"{runs.source}: run_id {name} names sizes {first:g} and {n:g}; give each run its "
                "own id"
            )


def _float(row: dict[str, str], name: str) -> float:
    try:
        return float(_text(row, name))
    except ValueError:
        return math.nan


def _recognise(
    name: str, declared: str, given: Array, computed: Mapping[str, Array]
) -> tuple[str, tuple[str, ...]]:
    """Return the convention of a column, by name or by agreement with the shapes, and a remark."""
    if declared == UNDECLARED:
        found = name_count(given, computed)
        if found is None:
            return declared, ()
        return found, (f"the shapes show that {name} counts {found}",)
    if declared in computed:
        off = float(np.abs(given / computed[declared] - 1.0).max())
        if off > AGREE:
            return declared, (
                f"{name} is declared {declared}, but differs from the count of the shapes by up to "
                f"{100 * off:.1f} %",
            )
    return declared, ()


def _with_shapes(runs: Runs, shapes: ShapeCounts, by_flops: Mapping[str, Array]) -> Runs:
    """Return the runs with every count that the shapes allow, the given one first."""
    if not shapes.params:
        return runs
    own = runs.conventions
    params = GIVEN if own.params == UNDECLARED else own.params
    flops = GIVEN if own.flops == UNDECLARED else own.flops
    return replace(
        runs,
        counts={**shapes.params, params: runs.params},
        flops_counts={flops: runs.flops, **{k: v for k, v in by_flops.items() if k != flops}},
    )
