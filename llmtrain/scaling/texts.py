"""What text a sweep was trained and evaluated on: whether two sweeps' losses can be compared."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from llmtrain.spec.errors import FitRefusedError
from llmtrain.spec.record import RunRecord

UNDECLARED = "undeclared"
NATS = "nats per token"
UNITS = {
    NATS: (
        "", UNDECLARED, "loss", "val loss", "validation loss", "nats", "nat", "nats/token",
        "cross entropy", "cross entropy loss", "ce", "nll",
    ),
    "bits per byte": ("bpb", "bits/byte"),
    "bits per token": ("bits/token",),
    "bits per character": ("bpc", "bits/character"),
    "perplexity": ("ppl", "val ppl", "validation perplexity"),
}  # fmt: skip
"""Unit of a loss -> names of a metric in it, in small letters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """Identities as the runs declare them; `undeclared` where they do not."""

    data: str = UNDECLARED
    """Name of the corpus."""
    corpus: str = UNDECLARED
    """Hash of the tokenised corpus, held-out part included."""
    tokenizer: str = UNDECLARED
    evaluation: str = UNDECLARED
    """What the loss is measured on, and at which context length."""
    metric: str = UNDECLARED
    """Unit of the loss, as `loss_unit` names it."""
    bits_per_byte: float | None = None
    """Bits per byte of one nat per token, constant over runs of one evaluation; null if unknown."""


NO_TEXTS = Texts()


def loss_unit(metric: str) -> str:
    """Return the unit of a metric's losses: nats per token where nothing else is declared."""
    name = " ".join(metric.lower().replace("_", " ").replace("-", " ").split())
    return next((unit for unit, names in UNITS.items() if name in (unit, *names)), metric)


def texts_of(records: Sequence[RunRecord]) -> Texts:
    """Return the texts of records that may be pooled."""
    first = records[0]
    return Texts(
        data=first.data_name,
        corpus=first.data_id,
        tokenizer=first.tokenizer_id,
        evaluation=f"{first.val_tokens} tokens in rows of {first.seq_len}",
        metric=NATS,
        bits_per_byte=float(np.median([record.val_bpb / record.val_loss for record in records])),
    )


def texts_from(document: dict[str, Any] | None) -> Texts:
    """Return the texts that a law.json holds; undeclared where it is older than they are."""
    known = {field.name for field in fields(Texts)}
    return Texts(**{name: value for name, value in (document or {}).items() if name in known})


def loss_scale(base: Texts, other: Texts) -> tuple[float, tuple[str, ...]]:
    """Return by how much `other`'s loss is multiplied to be one of `base`, and what to say of it.

    1 on the same tokens; through bits per byte where the tokenizers differ on data of one name.
    Raises FitRefusedError where the data, the evaluation or the unit of the loss differ.
    """
    units = loss_unit(base.metric), loss_unit(other.metric)
    if units[0] != units[1]:
        raise FitRefusedError(
            f"metric differs, {units[0]} against {units[1]}: the losses are of two units; give "
            "both tables losses of one"
        )
    for what, remedy in (
        ("data", "train one of them again on the other's data"),
        ("evaluation", "evaluate both on the same rows"),
    ):
        mine, theirs = getattr(base, what), getattr(other, what)
        by_tokens = what == "evaluation" and _differ(base.tokenizer, other.tokenizer)
        if _differ(mine, theirs) and not by_tokens:
            raise FitRefusedError(
                f"{what} differs, {mine} against {theirs}: equal losses are not equal models; "
                f"{remedy}"
            )
    if _differ(base.tokenizer, other.tokenizer):
        if base.bits_per_byte is None or other.bits_per_byte is None:
            raise FitRefusedError(
                f"tokenizer differs, {base.tokenizer[:16]} against {other.tokenizer[:16]}, and "
                "nats per token do not compare; sweeps with records compare in bits per byte"
            )
        note = (
            f"tokenizers differ: losses are compared in bits per byte, {base.bits_per_byte:.4g} "
            f"against {other.bits_per_byte:.4g} of a nat per token; that both evaluate the same "
            "text is taken from the name of the data"
        )
        return other.bits_per_byte / base.bits_per_byte, (note,)
    if _differ(base.corpus, other.corpus):
        raise FitRefusedError(
            f"corpus differs, {base.corpus[:16]} against {other.corpus[:16]}: the held-out text is "
            "not the same; prepare the data once for both"
        )
    silent = [
        what
        for what in ("data", "tokenizer", "evaluation")
        if UNDECLARED in (getattr(base, what), getattr(other, what))
    ]
    note = f"taken to be the same, since not both declare it: {', '.join(silent)}"
    return 1.0, (note,) if silent else ()


def _differ(mine: str, theirs: str) -> bool:
    return UNDECLARED not in (mine, theirs) and mine != theirs
