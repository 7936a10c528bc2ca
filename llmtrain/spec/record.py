"""The record of a finished run: written once, after evaluation; all that the analysis reads."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain.spec.build import build, config_hash
from llmtrain.spec.disk import sync, write_whole, writing
from llmtrain.spec.errors import LlmtrainError, MismatchError
from llmtrain.spec.jsonfile import read_json

SCHEMA = 3
RECORD_FILE = "record.json"
OWN_HASH = "sha256"
"""Key of the hash over all other fields: an edit is found, though not a forger who hashes anew."""


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
    """Wall seconds by part: setup, compile, train, evaluate, save, undone (behind the checkpoint
    that a rollback, or another start, went on from)."""
    tokens_per_second: float
    mfu: float | None
    """Model FLOPs (full_attention) over time and peak; null where no peak is known."""
    memory_bytes: int
    """Peak memory, all devices together: allocated on a GPU, resident of the process on a CPU."""
    energy_j: float | None
    """Joules of the GPUs, or of the processors where there is none; null where nobody knows."""
    energy_source: str
    """nvml or rapl (a counter, this run's share of it), estimated (time x rated power), none."""
    hardware: dict[str, str]
    """Of one device, and how many there were: n_devices; stacked: runs that shared it as one."""
    versions: dict[str, str]
    metrics_sha256: str
    """Hash of metrics.jsonl."""
    lr_multiplier: float | None = None
    """recipe.lr_multiplier: the rate over the recipe's; null where nothing recorded it."""
    n_skipped: int = 0
    """Steps whose update was held back; their tokens were read and count in n_tokens."""
    n_spikes: int = 0
    """Losses that leapt out of the ones before them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """What a run has used so far, over all its starts; every field is one of its record's."""

    seconds: dict[str, float]
    energy_j: float | None
    energy_source: str
    hardware: dict[str, str]

    @property
    def wall_s(self) -> float:
        """Seconds of all parts."""
        return sum(self.seconds.values())

    @property
    def measured_j(self) -> float | None:
        """Joules that a counter has read; None where none did."""
        return None if self.energy_source == "estimated" else self.energy_j

    def until(self, wall_s: float) -> "Spent":
        """Return it at a later end, which nobody has noted: the joules are unknown then."""
        if wall_s <= self.wall_s:
            return self
        undone = self.seconds.get("undone", 0.0) + wall_s - self.wall_s
        seconds = self.seconds | {"undone": undone}
        return dataclasses.replace(self, seconds=seconds, energy_j=None, energy_source="none")


ORIGIN = {
    "hardware": ("device", "cpu", "cpu_capability", "cores", "threads"),
    "versions": ("llmtrain", "python", "torch", "numpy"),
}
ORIGIN_ON_GPU = {"hardware": ("gpu",), "versions": ("cuda", "driver")}
"""What a record says of where it comes from, besides its own fields."""


def write_record(directory: Path, record: RunRecord) -> None:
    """Write `record.json`, with its own hash, by rename: whole or absent, and there to stay."""
    as_read = build(RunRecord, dataclasses.asdict(record))  # 3 and 3.0 are the same number
    content = dataclasses.asdict(record) | {OWN_HASH: config_hash(as_read)}
    text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False)
    write_whole(directory / RECORD_FILE, text + "\n")
    with writing(directory):
        sync(directory)


def parse_record(raw: Any) -> RunRecord:
    """Build a record from its file's JSON.

    Raises MismatchError for another schema, for missing fields, and where it was edited.
    """
    fields = {k: v for k, v in raw.items() if k != OWN_HASH} if isinstance(raw, dict) else raw
    record = build_record(fields)
    if raw.get(OWN_HASH) != config_hash(record):
        raise MismatchError("record does not match its own hash, it was edited")
    return record


def build_record(fields: Any) -> RunRecord:
    """Build a record from its fields alone, as a service that has no file gives them back.

    Raises MismatchError for another schema and for missing fields.
    """
    if not isinstance(fields, dict) or fields.get("schema") != SCHEMA:
        found = fields.get("schema") if isinstance(fields, dict) else type(fields).__name__
        raise MismatchError(f"record has schema {found!r}, this version reads {SCHEMA}")
    try:
        record = build(RunRecord, fields)
    except LlmtrainError as error:
        raise MismatchError(f"record is damaged: {error}") from error
    _check_origin(record)
    return record


def _check_origin(record: RunRecord) -> None:
    """Refuse a record that does not say what it was trained on. Raises MismatchError."""
    needed = [ORIGIN, ORIGIN_ON_GPU] if record.hardware.get("device") == "cuda" else [ORIGIN]
    for part in needed:
        for field, keys in part.items():
            for key in keys:
                if not getattr(record, field).get(key):
                    raise MismatchError(f"record is damaged: {field}.{key}: missing key")


def read_record(directory: Path) -> RunRecord | None:
    """Return the record in `directory`, or None where the run has not finished."""
    path = directory / RECORD_FILE
    if not path.is_file():
        return None
    try:
        return parse_record(read_json(path))
    except (ValueError, MismatchError) as error:
        raise MismatchError(f"{path}: {error}; move the folder away to train it again") from error
