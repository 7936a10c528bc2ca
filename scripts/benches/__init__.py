"""The parts that scripts/bench.py can time, one module each: keys, a function, a line of help."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Seconds = dict[str, float]
Facts = dict[str, float]


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
