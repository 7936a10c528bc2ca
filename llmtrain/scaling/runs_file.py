"""The runs of a sweep as a table that `runs=FILE.csv` reads back: to send, to plot, to fit anew."""

import csv
import io
from typing import Any

from llmtrain.scaling.runs import Runs
from llmtrain.spec.record import RunRecord

RUNS_FILE = "runs.csv"
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet would take for a formula at the head of a cell."""


def runs_table(runs: Runs) -> str:
    """Return the records' rows as CSV: what the fits read, conventions named, and how they ran."""
    rows = [_row(runs, record) for record in runs.records]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _row(runs: Runs, record: RunRecord) -> dict[str, Any]:
    given = runs.conventions
    return {
        "run_id": record.run_id,
        "group": record.family,
        "params": record.params[given.params],
        "tokens": record.n_tokens,
        "flops": record.flops[given.flops],
        "budget": record.flops_budget,
        "loss": record.val_loss,
        "seed": record.seed,
        "d_model": record.d_model,
        "n_layers": record.n_layers,
        "trunk": record.trunk or "",
        "lr_multiplier": record.lr_multiplier,
        "params_convention": given.params,
        "flops_convention": given.flops,
        "data": record.data_name,
        "data_id": record.data_id,
        "tokenizer_id": record.tokenizer_id,
        "recipe": record.recipe,
        "optimizer": record.optimizer,
        "schedule": record.schedule,
        "code_id": record.code_id,
        "val_bpb": record.val_bpb,
        "train_loss": record.train_loss,
        "n_steps": record.n_steps,
        "batch_tokens": record.batch_tokens,
        "peak_lr": record.peak_lr,
        "tokens_per_second": record.tokens_per_second,
        "seconds": sum(record.seconds.values()),
        "energy_j": record.energy_j,
        "energy_source": record.energy_source,
    }


def _cell(value: object) -> object:
    """Return the value, text that a spreadsheet would run with a quote before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
