"""The record of a finished run: written once, after evaluation; all that the analysis reads."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain.spec.build import build
from llmtrain.spec.errors import LlmtrainError, MismatchError

SCHEMA = 2
RECORD_FILE = "record.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """Facts of one finished run. Dictionaries over conventions have the keys of spec/flops.py."""

    schema: int
    """Version of this layout."""
    run_id: str
    config_id: str
    """Hash of every setting that decides the result."""
    code_id: str
    """Git commit, with a hash of the uncommitted change after '+', or 'unknown'."""
    family: str
    """Sweep the run belongs to."""
    data_name: str
    data_id: str
    """sha256 of the corpus manifest."""
    tokenizer_id: str
    """sha256 of the tokenizer."""
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    seq_len: int
    """Full context length in tokens."""
    parametrization: str
    params: dict[str, int]
    """Parameters by count: non_embedding, no_input_embedding, total."""
    n_tokens: int
    """Training tokens."""
    n_steps: int
    batch_tokens: int
    unique_tokens: int
    """Tokens of the training split."""
    epochs: float
    flops_convention: str
    """Convention of the budget."""
    flops_budget: float | None
    """The budget asked for; null where tokens were asked for."""
    flops: dict[str, float]
    """Training FLOPs of the whole run, by convention; a branch's prefix counts in full."""
    flops_spent: float
    """FLOPs this run executed itself, under flops_convention: of a branch, its cooldown."""
    trunk: str | None
    """Run id of the trunk that this run is, or started from: runs of one trunk are correlated."""
    seed: int
    recipe: str
    peak_lr: float
    optimizer: str
    schedule: str
    annealed: bool
    """The schedule reached its end: cosine, linear and wsd, not constant or inverse_sqrt."""
    seq_len_warmup: str
    """Mode and pacing, or 'none'."""
    dtype: str
    val_loss: float
    """Nats per token at full length."""
    val_bpb: float
    """Bits per byte of the same text."""
    val_tokens: int
    val_loss_se: float
    """Standard error of val_loss over the evaluated rows: text noise, not seed noise."""
    train_loss: float
    """Mean over the last twentieth of the steps, nats per token."""
    seconds: dict[str, float]
    """Wall seconds by part: setup, compile, train, evaluate, save."""
    tokens_per_second: float
    mfu: float | None
    """Model FLOPs (full_attention) over time and peak; null where no peak is known."""
    memory_bytes: int
    """Peak memory, all devices together: allocated on a GPU, resident of the process on a CPU."""
    energy_j: float | None
    """Joules, null where nothing measures or estimates them."""
    energy_source: str
    """nvml, rapl, estimated or none."""
    hardware: dict[str, str]
    """Of one device, and how many there were: n_devices."""
    versions: dict[str, str]
    metrics_sha256: str
    """Hash of metrics.jsonl."""
    lr_multiplier: float | None = None
    """recipe.lr_multiplier: the rate over the recipe's; null in records older than this field."""


def write_record(directory: Path, record: RunRecord) -> None:
    """Write `record.json` into `directory` by rename: whole or absent."""
    target = directory / RECORD_FILE
    temporary = target.with_suffix(".tmp")
    text = json.dumps(dataclasses.asdict(record), indent=1, sort_keys=True, allow_nan=False)
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(target)


def parse_record(raw: Any) -> RunRecord:
    """Build a record from JSON. Raises MismatchError for another schema or for missing fields."""
    if isinstance(raw, dict) and raw.get("schema") == 1:  # before there were trunks
        raw = {**raw, "schema": SCHEMA, "trunk": None, "flops_spent": _own_flops(raw)}
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        found = raw.get("schema") if isinstance(raw, dict) else type(raw).__name__
        raise MismatchError(f"record has schema {found!r}, this version reads {SCHEMA}")
    try:
        return build(RunRecord, {"lr_multiplier": None} | raw)
    except LlmtrainError as error:
        raise MismatchError(f"record is damaged: {error}") from error


def _own_flops(raw: dict[str, Any]) -> object:
    try:
        return raw["flops"][raw["flops_convention"]]
    except (KeyError, TypeError):
        return None  # refused with the rest of the damage


def read_record(directory: Path) -> RunRecord | None:
    """Return the record in `directory`, or None where the run has not finished."""
    path = directory / RECORD_FILE
    if not path.is_file():
        return None
    try:
        return parse_record(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, MismatchError) as error:
        raise MismatchError(f"{path}: {error}; move the folder away to train it again") from error
