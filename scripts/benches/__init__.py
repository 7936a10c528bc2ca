"""The parts that scripts/bench.py can time, one module each: keys, a function, a line of help."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmtrain.spec.errors import LlmtrainError
from llmtrain.spec.record import RunRecord, read_record
from llmtrain.spec.rundir import run_directory
from llmtrain.spec.settings import TrainConfig

Seconds = dict[str, float]
"""What was measured, by name: seconds, unless the name ends in another unit."""
Facts = dict[str, float]


class BenchError(LlmtrainError):
    """The sides of a comparison did not do the same work, so their times say nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """A part that can be timed."""

    keys: Mapping[str, str]
    """Keys of its own with their defaults; all values are whole numbers."""
    text: Mapping[str, str] = field(default_factory=dict)
    """Keys of its own whose values are text, such as a path."""
    run: Callable[[Mapping[str, Any]], Seconds]
    """Times it once: seconds by stage."""
    facts: Callable[[Seconds], Facts] = lambda _: {}
    """What follows from the medians, such as a ratio."""
    column: str = "seconds"
    """Heading of what it returns."""
    packages: tuple[str, ...] = ()
    """Packages whose versions matter to it."""


def finished(config: TrainConfig) -> RunRecord:
    """Return the record of a run. Raises BenchError where it has none."""
    record = read_record(directory := run_directory(config))
    if record is None:
        raise BenchError(f"{directory.name} was not finished; run it by itself to see why")
    return record
