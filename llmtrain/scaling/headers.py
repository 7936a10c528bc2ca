"""Which column of a table is which: by its name, by the `columns=` option, never by a guess."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmtrain.spec.errors import ConfigError

REQUIRED = ("params", "tokens", "loss")
DECLARED = (
    "params_convention", "flops_convention", "tokenizer", "tokenizer_id", "vocab_size", "data",
    "data_id", "dataset", "eval_data", "eval_set", "metric", "seq_len", "parametrization",
)  # fmt: skip
"""Columns that must hold one value within a group."""
OPTIONAL = (
    "flops", "budget", "group", "run_id", "seed", "status", "annealed", "d_model", "n_layers",
    "n_heads", "n_kv_heads", "d_head", "d_ff", "ff_ratio", "activation", "tied_head", "code_id",
    "recipe", "optimizer", "schedule", "trunk", "lr_multiplier",
)  # fmt: skip
KNOWN = (*REQUIRED, *OPTIONAL, *DECLARED)
SYNONYMS = {
    "params": ("n", "nparams", "parameters", "numparams", "modelsize", "paramcount", "size"),
    "tokens": ("d", "ntokens", "traintokens", "trainingtokens", "numtokens", "tokenstrained"),
    "loss": ("l", "valloss", "evalloss", "finalloss", "testloss", "validationloss"),
    "flops": ("c", "compute", "trainflops", "totalflops", "trainingflops"),
    "d_model": ("width", "hiddensize", "modeldim", "hiddendim"),
    "n_layers": ("depth", "layers", "numlayers", "nlayer"),
}
"""Names that a refusal or a note proposes; letters only, lower case."""


def match_columns(
    path: Path, header: Sequence[str], mapping: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Return the header under this program's names, and the columns that nothing reads.

    Case and blanks do not matter; `mapping` names columns for the fields it holds. Raises
    ConfigError for a required column that is missing (naming all that are, what was found and what
    looks like them), a column that appears twice, or a mapping to nothing.
    """
    found = [name.strip() for name in header]
    for field, column in mapping.items():
        if field not in KNOWN:
            raise ConfigError(f"columns.{field}: not a field; known are {', '.join(KNOWN)}")
        if column not in found:
            raise ConfigError(f"columns.{field}={column}: {path} has no such column")
    taken = {column: field for field, column in mapping.items()}
    names = []
    for name in found:
        plain = name.lower().replace(" ", "_")
        if name in taken:
            names.append(taken[name])
        elif plain in mapping:
            names.append(f"{name} (another column is named for it)")
        else:
            names.append(plain if plain in KNOWN else name)
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        shown = ", ".join(found) or "nothing"
        raise ConfigError(
            f"{path}: missing column {', '.join(missing)}; found {shown}{_advice(missing, found)}"
        )
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise ConfigError(f"{path}: column {', '.join(twice)} appears twice; keep one")
    return names, [name for name in names if name and name not in KNOWN]


def looks_like(field: str, found: Sequence[str]) -> str | None:
    """Return a column whose name is usual for `field`."""
    usual = SYNONYMS.get(field, ())
    return next((name for name in found if re.sub(r"[^a-z]", "", name.lower()) in usual), None)


def _advice(missing: Sequence[str], found: Sequence[str]) -> str:
    pairs = [f"{field}: {name}" for field in missing if (name := looks_like(field, found))]
    return f"; if that is what they hold, add 'columns={{{', '.join(pairs)}}}'" if pairs else ""
