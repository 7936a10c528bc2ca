"""The table of runs that every fit reads."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmtrain.scaling.law import FLOPS_PER_PARAM_TOKEN, Array
from llmtrain.scaling.texts import NO_TEXTS, Texts
from llmtrain.spec.record import RunRecord

Labels = NDArray[np.str_]
TRAITS = ("recipe", "optimizer", "schedule")
"""What may differ among the runs of one fit, but is said."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exclusion:
    """A run or row that enters no fit, and why."""

    run_id: str
    reason: str
    group: str = ""
    """Group of the row; '' where unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conventions:
    """How the columns were counted."""

    params: str
    """Parameter count of `Runs.params`: non_embedding, no_input_embedding, total or undeclared."""
    flops: str
    """FLOP count of `Runs.flops`: a name of spec/flops.py, 6ND or undeclared."""
    flops_imputed: bool
    """FLOPs were not given and are 6 * params * tokens."""
    texts: Texts = NO_TEXTS
    """What the runs were trained and evaluated on."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Runs:
    """Columns of equal length, one row a run (or a checkpoint of a run, where run ids repeat)."""

    source: str
    """File or folder the rows come from."""
    sha256: str
    """Hash of the data as read."""
    run_id: Labels
    group: Labels
    """Comparable experiment; groups are never pooled."""
    params: Array
    tokens: Array
    flops: Array
    """Training FLOPs executed (records) or given (tables)."""
    budget: Array
    """FLOP budget of the row's IsoFLOP curve; NaN where it belongs to none."""
    loss: Array
    """Nats per token."""
    seed: Array
    """NaN where unknown."""
    d_model: Array
    """NaN where unknown."""
    n_layers: Array
    """NaN where unknown."""
    trunk: Labels
    """Name of what runs share that are branches of one run; '' where a run stands alone."""
    lr_multiplier: Array
    """Rate over the recipe's; NaN where unknown."""
    conventions: Conventions
    exclusions: tuple[Exclusion, ...]
    counts: dict[str, Array]
    """Other parameter counts of the same rows, by convention."""
    flops_counts: dict[str, Array]
    """Training FLOPs of the same rows under other conventions."""
    traits: dict[str, Labels]
    """How each row was trained: recipe, optimizer, schedule; '' where unknown."""
    code: Labels
    """Code identity of each row: commit, and the hash of an uncommitted change; '' if unknown."""
    remarks: tuple[str, ...]
    """What reading the source found worth saying."""
    records: tuple[RunRecord, ...]
    """Records of the rows, in order; empty for a table."""

    def __len__(self) -> int:
        return len(self.params)

    def take(self, keep: NDArray[np.bool_], reasons: Sequence[Exclusion] = ()) -> "Runs":
        """Return the rows where `keep`, in order; `reasons` join the exclusions."""
        changed: dict[str, Any] = {
            field.name: getattr(self, field.name)[keep]
            for field in dataclasses.fields(self)
            if isinstance(getattr(self, field.name), np.ndarray)
        }
        for name in ("counts", "flops_counts", "traits"):
            columns: dict[str, NDArray[Any]] = getattr(self, name)
            changed[name] = {key: column[keep] for key, column in columns.items()}
        if self.records:
            pairs = zip(self.records, keep, strict=True)
            changed["records"] = tuple(record for record, kept in pairs if kept)
        changed["exclusions"] = (*self.exclusions, *reasons)
        return dataclasses.replace(self, **changed)

    def without(self, drop: NDArray[np.bool_], reason: str) -> "Runs":
        """Return the rows where not `drop`, each dropped row listed with `reason`."""
        pairs = zip(self.run_id[drop], self.group[drop], strict=True)
        listed = [
            Exclusion(run_id=str(name), reason=reason, group=str(group)) for name, group in pairs
        ]
        return self.take(~drop, listed)

    def finals(self) -> "Runs":
        """Return the last checkpoint (most tokens) of every run id."""
        order = np.lexsort((self.tokens, self.run_id))
        is_last = np.append(self.run_id[order][1:] != self.run_id[order][:-1], True)
        keep = np.zeros(len(self), dtype=bool)
        keep[order[is_last]] = True
        return self.take(keep)

    def counted_as(self, convention: str) -> "Runs":
        """Return the same rows with `params` under another convention they are counted in."""
        given = self.conventions
        flops = given.flops
        if given.flops_imputed and convention != given.params:
            flops = "6ND of the given parameters"
        return dataclasses.replace(
            self,
            params=self.counts[convention],
            conventions=dataclasses.replace(given, params=convention, flops=flops),
        )

    @property
    def left_out(self) -> tuple[Exclusion, ...]:
        """The exclusions of these rows' groups, and those whose group is unknown."""
        own = {"", *map(str, self.group)}
        return tuple(item for item in self.exclusions if item.group in own)

    @property
    def lineage(self) -> Labels:
        """What a row was trained as: its run id, or the trunk's where runs share one."""
        return np.where(self.trunk == "", self.run_id, self.trunk)

    @property
    def flops_ratio(self) -> Array:
        """FLOPs over 6 * params * tokens, row by row."""
        return self.flops / (FLOPS_PER_PARAM_TOKEN * self.params * self.tokens)

    @property
    def budgets(self) -> Array:
        """The distinct FLOP budgets, ascending."""
        return np.unique(self.budget[np.isfinite(self.budget)])
