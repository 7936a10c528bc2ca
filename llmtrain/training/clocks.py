"""Where the wall time of runs goes."""

import time
from collections.abc import Sequence


class Stopwatch:
    """Adds the wall time of a `with` block to one entry of dictionaries, a share to each."""

    def __init__(self, part: str, clocks: Sequence[dict[str, float]]) -> None:
        self.part, self.clocks = part, clocks

    def __enter__(self) -> None:
        self.begin = time.perf_counter()

    def __exit__(self, *_error: object) -> None:
        elapsed = time.perf_counter() - self.begin
        for seconds in self.clocks:
            seconds[self.part] += elapsed / len(self.clocks)
