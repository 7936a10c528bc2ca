"""From a sweep's folder or a CSV to the table of runs, with a reason for whatever is left out."""

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from llmtrain.scaling.law import Array
from llmtrain.scaling.runs import TRAITS, Conventions, Exclusion, Runs
from llmtrain.scaling.tables import AS_IT_SAYS, TableOptions, read_table
from llmtrain.scaling.texts import texts_of
from llmtrain.spec.errors import ConfigError, FitRefusedError, MismatchError
from llmtrain.spec.jsonfile import read_json
from llmtrain.spec.record import RECORD_FILE, RunRecord, read_record

METRICS_FILE = "metrics.jsonl"
STATE_FILE = "state.json"
PARAMS_CONVENTION = "no_input_embedding"
"""Default N of a fit: the weights that multiply, head included, as in the default FLOP count."""
RUN_FILES = (RECORD_FILE, STATE_FILE, METRICS_FILE, "config.json", "plan.json")
SAME_IN_A_FIT = (
    "data_id",
    "tokenizer_id",
    "vocab_size",
    "seq_len",
    "flops_convention",
    "parametrization",
)
"""Record fields that must agree among the runs of one fit."""


def load_runs(path: Path, options: TableOptions = AS_IT_SAYS) -> Runs:
    """Load a sweep folder (sub-folders with `record.json`) or a CSV file, read by `options`.

    Raises ConfigError where there is nothing to read and FitRefusedError where nothing is finished
    or the runs must not be pooled.
    """
    if path.is_dir():
        if options != AS_IT_SAYS:
            raise ConfigError(
                f"runs={path} is a folder, whose records name their columns and conventions; leave "
                "columns, params_convention and flops_convention out"
            )
        return _read_folder(path)
    if not path.is_file():
        raise ConfigError(f"runs={path} does not exist; name a sweep's folder or a CSV file")
    return read_table(path, options)


def _read_folder(path: Path) -> Runs:
    if (path / RECORD_FILE).is_file():
        raise ConfigError(f"runs={path} is a single run; name the folder that holds the sweep")
    folders = sorted(f for f in path.iterdir() if any((f / name).exists() for name in RUN_FILES))
    if not folders:
        raise ConfigError(f"runs={path} holds no runs; name the folder of a sweep")
    records: list[RunRecord] = []
    exclusions: list[Exclusion] = []
    for folder in folders:
        found = _read_run(folder)
        if isinstance(found, Exclusion):
            exclusions.append(found)
        else:
            records.append(found)
    if any(record.annealed for record in records):
        reason = f"schedule did not reach its end, among annealed runs; {path.name}"
        exclusions += [
            Exclusion(run_id=r.run_id, reason=reason, group=r.family)
            for r in records
            if not r.annealed
        ]
        records = [record for record in records if record.annealed]
    if not records:
        raise FitRefusedError(
            f"runs={path}: none of {len(folders)} runs is finished; run the sweep's command again"
        )
    _check_poolable(path, records)
    return from_records(records, source=str(path), exclusions=exclusions)


def _read_run(folder: Path) -> RunRecord | Exclusion:
    """Return the folder's record, or why it has none that can be trusted."""
    try:
        record = read_record(folder)
    except MismatchError as error:
        return Exclusion(run_id=folder.name, reason=str(error))
    if record is None:
        return Exclusion(run_id=folder.name, reason=_unfinished(folder / STATE_FILE))
    if record.run_id != folder.name:
        reason = f"its record names run {record.run_id[:80]}: a copy, or a folder renamed"
        return Exclusion(run_id=folder.name, reason=reason)
    metrics = folder / METRICS_FILE
    if metrics.is_file():
        digest = hashlib.sha256(metrics.read_bytes()).hexdigest()
        if digest != record.metrics_sha256:
            reason = f"{METRICS_FILE} does not match the hash in {RECORD_FILE}"
            return Exclusion(run_id=record.run_id, reason=reason, group=record.family)
    if not (math.isfinite(record.val_loss) and record.val_loss > 0):
        reason = f"val_loss {record.val_loss!r}"
        return Exclusion(run_id=record.run_id, reason=reason, group=record.family)
    return record


def _unfinished(path: Path) -> str:
    """Say how far a run without a record got, by its state file."""
    try:
        state = read_json(path)
        reason = f": {state['reason']}" if state.get("reason") else ""
        return f"{state['state']}{reason}"
    except (OSError, ValueError, KeyError, AttributeError):
        return f"no {RECORD_FILE}: not finished"


def _check_poolable(path: Path, records: Sequence[RunRecord]) -> None:
    for field in SAME_IN_A_FIT:
        values = sorted({str(getattr(record, field)) for record in records})
        if len(values) > 1:
            shown = " and ".join(value[:16] for value in values[:3])
            raise FitRefusedError(
                f"runs={path} mixes {field} {shown}; runs that differ in it are never fitted "
                "together: keep one of them in the folder"
            )


def from_records(
    records: Sequence[RunRecord], *, source: str, exclusions: Sequence[Exclusion]
) -> Runs:
    """Build the table from records that may be pooled; the order of the records is kept."""

    def column(value: Callable[[RunRecord], float]) -> Array:
        return np.array([value(record) for record in records], dtype=np.float64)

    digest = hashlib.sha256()
    for record in sorted(records, key=lambda record: record.run_id):
        digest.update(f"{record.run_id} {record.metrics_sha256} {record.val_loss!r}\n".encode())
    convention = records[0].flops_convention
    names = [n for n in records[0].params if all(n in record.params for record in records)]
    counts = {name: column(lambda record, name=name: record.params[name]) for name in names}  # type: ignore[misc]
    kinds = [n for n in records[0].flops if all(n in record.flops for record in records)]
    flops = {kind: column(lambda record, kind=kind: record.flops[kind]) for kind in kinds}  # type: ignore[misc]
    return Runs(
        source=source,
        sha256=digest.hexdigest(),
        run_id=np.array([record.run_id for record in records], dtype=np.str_),
        group=np.array([record.family for record in records], dtype=np.str_),
        params=counts[PARAMS_CONVENTION],
        tokens=column(lambda record: record.n_tokens),
        flops=flops[convention],
        budget=column(
            lambda record: math.nan if record.flops_budget is None else record.flops_budget
        ),
        loss=column(lambda record: record.val_loss),
        seed=column(lambda record: record.seed),
        d_model=column(lambda record: record.d_model),
        n_layers=column(lambda record: record.n_layers),
        trunk=np.array([record.trunk or "" for record in records], dtype=np.str_),
        lr_multiplier=column(
            lambda record: math.nan if record.lr_multiplier is None else record.lr_multiplier
        ),
        conventions=Conventions(
            params=PARAMS_CONVENTION,
            flops=convention,
            flops_imputed=False,
            texts=texts_of(records),
        ),
        exclusions=tuple(exclusions),
        counts=counts,
        flops_counts=flops,
        traits={
            name: np.array([getattr(record, name) for record in records], dtype=np.str_)
            for name in TRAITS
        },
        code=np.array([_known(record.code_id) for record in records], dtype=np.str_),
        remarks=(),
        records=tuple(records),
    )


def _known(code_id: str) -> str:
    return "" if code_id == "unknown" else code_id
