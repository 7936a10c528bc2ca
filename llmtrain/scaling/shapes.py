"""Parameter and FLOP counts of a table's rows under every convention that its shapes allow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmtrain.scaling.law import Array
from llmtrain.spec.config import ModelConfig
from llmtrain.spec.errors import ConfigError
from llmtrain.spec.flops import flops_per_token, param_groups

NEEDS = {
    "non_embedding": (),
    "with_head": ("vocab_size",),
    "causal_attention": ("vocab_size", "seq_len"),
    "full_attention": ("vocab_size", "seq_len"),
    "chinchilla": ("vocab_size", "seq_len", "n_heads or d_head"),
    "total": ("vocab_size",),
}
"""What each FLOP count needs beyond width, depth and the MLP."""
AGREE = 0.005
"""A given count this close (relative, in every row) to a computed one is that count."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ShapeCounts:
    """What the shapes give; empty dictionaries where they say too little."""

    params: dict[str, Array]
    """Parameters of every row, by convention."""
    flops_per_token: dict[str, Array]
    """Training FLOPs per token of every row, by convention."""
    remarks: tuple[str, ...]
    """What is missing, and what was assumed."""


def count_shapes(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> ShapeCounts:
    """Count every row of a table with spec/flops.py; needs d_model, n_layers and d_ff or ff_ratio.

    `vocab_size`, `seq_len`, `n_heads` or `d_head` allow more conventions. A table that names
    neither width nor depth has no shapes and no remark.
    """
    present = {name for name in columns if all((row.get(name) or "").strip() for row in rows)}
    if not {"d_model", "n_layers"} & present:
        return ShapeCounts(params={}, flops_per_token={}, remarks=())
    lacking = [name for name in ("d_model", "n_layers") if name not in present]
    if not {"d_ff", "ff_ratio"} & present:
        lacking.append("d_ff or ff_ratio")
    if lacking:
        message = f"shapes are incomplete, so N and C stay as given: add {', '.join(lacking)}"
        return ShapeCounts(params={}, flops_per_token={}, remarks=(message,))
    try:
        return _count(rows, present)
    except (ValueError, ConfigError) as error:
        message = f"shapes cannot be counted, so N and C stay as given: {error}"
        return ShapeCounts(params={}, flops_per_token={}, remarks=(message,))


def _count(rows: Sequence[Mapping[str, str]], present: set[str]) -> ShapeCounts:
    have = present | ({"n_heads or d_head"} if {"n_heads", "d_head"} & present else set())
    kinds = [kind for kind, needs in NEEDS.items() if set(needs) <= have]
    known: dict[tuple[str, ...], tuple[dict[str, int], dict[str, float]]] = {}
    keys = sorted(present)
    found = []
    for row in rows:
        key = tuple((row.get(name) or "").strip() for name in keys)
        if key not in known:
            known[key] = _count_one(dict(zip(keys, key, strict=True)))
        found.append(known[key])
    names = ["non_embedding"]
    if "vocab_size" in present:
        names += ["no_input_embedding", "total"]
    return ShapeCounts(
        params={name: np.array([float(own[0][name]) for own in found]) for name in names},
        flops_per_token={kind: np.array([own[1][kind] for own in found]) for kind in kinds},
        remarks=_remarks(present, kinds),
    )


def _remarks(present: set[str], kinds: Sequence[str]) -> tuple[str, ...]:
    remarks = []
    lacking = [name for name in ("vocab_size", "seq_len") if name not in present]
    if not {"n_heads", "d_head"} & present:
        lacking.append("n_heads or d_head")
    absent = [kind for kind in NEEDS if kind not in kinds]
    if absent:
        remarks.append(f"shapes lack {', '.join(lacking)}: no {', '.join(absent)} count of C")
    assumed = {"activation": "an MLP of two matrices", "tied_head": "an untied head"}
    said = [what for name, what in assumed.items() if name not in present]
    if said:
        remarks.append(f"counts by shape assume {' and '.join(said)}; no column says otherwise")
    return tuple(remarks)


def _count_one(cell: Mapping[str, str]) -> tuple[dict[str, int], dict[str, float]]:
    d_model, n_layers = _whole(cell, "d_model"), _whole(cell, "n_layers")
    ratio = _whole(cell, "d_ff") / d_model if "d_ff" in cell else float(cell["ff_ratio"])
    d_head = _whole(cell, "d_head") if "d_head" in cell else d_model
    if "n_heads" in cell:
        heads = _whole(cell, "n_heads")
        if d_model % heads or ("d_head" in cell and heads * d_head != d_model):
            raise ConfigError(f"n_heads={heads} heads do not fill d_model={d_model}")
        d_head = d_model // heads
        if "n_kv_heads" in cell and _whole(cell, "n_kv_heads") != heads:
            raise ConfigError("n_kv_heads differ from n_heads; shared keys are not counted here")
    fixed: dict[str, Any] = {
        "ff_multiple": 1, "norm": "rmsnorm", "position": "learned", "rope_base": 1e4,
        "qk_norm": False, "bias": False, "dropout": 0.0, "init_std": 0.02, "init": "fan_in",
        "parametrization": "standard", "base_d_model": d_model,
    }  # fmt: skip
    activation = cell.get("activation", "gelu").lower()
    three = activation in ("swiglu", "geglu", "silu_glu", "swish_glu")
    model = ModelConfig(
        d_model=d_model,
        n_layers=n_layers,
        d_head=d_head,
        ff_ratio=ratio,
        activation="swiglu" if three else "gelu",
        tied_head=cell.get("tied_head", "").lower() in ("true", "1", "yes"),
        **fixed,
    )
    vocab_size = _whole(cell, "vocab_size") if "vocab_size" in cell else 0
    seq_len = _whole(cell, "seq_len") if "seq_len" in cell else 1
    # A learned table of positions only keeps odd heads legal here; its rows are not counted.
    counts = param_groups(model, vocab_size=vocab_size, seq_len=0).counts()
    per_token = flops_per_token(model, vocab_size=vocab_size, seq_len=seq_len)
    per_token["total"] = 6.0 * counts["total"]
    return counts, {str(name): value for name, value in per_token.items()}


def _whole(cell: Mapping[str, str], name: str) -> int:
    try:
        value = float(cell[name])
    except ValueError:
        value = float("nan")
    if not (value >= 1 and value.is_integer()):
        raise ConfigError(f"{name}={cell[name]!r} must be a whole number above 0")
    return int(value)


def name_count(given: Array, computed: Mapping[str, Array]) -> str | None:
    """Return the one convention whose counts agree with the given column in every row."""
    near = [name for name, own in computed.items() if np.abs(given / own - 1.0).max() < AGREE]
    return near[0] if len(near) == 1 else None
