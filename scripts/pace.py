"""How long something will take, by how far it has come since it was first seen."""

import time


class Pace:
    """Its first look is where it counts from: what came before, as a start, tells no speed."""

    def __init__(self) -> None:
        self.first: tuple[float, float] | None = None

    def left(self, done: float, whole: float = 1.0) -> float | None:
        """Return the seconds left where `done` of `whole` is; None at the first look."""
        now = time.monotonic()
        if self.first is None:
            self.first = (now, done)
        begin, at = self.first
        return None if done <= at else (now - begin) * max(0.0, whole - done) / (done - at)
