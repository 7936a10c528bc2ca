"""When a counter of signs of life has stood still for too long, for whoever looks at it."""

import time

STACK_FILE = "stack.txt"
"""In a run's folder: where the threads stood when the run was ended for hanging."""
START_S = 120.0  # what the first sign of life may take, whatever the limit: imports, compilation


class Silence:
    """How long a counter has not moved. A look that comes late, as after Ctrl-Z, counts as one."""

    def __init__(self, beats: int) -> None:
        self.seen, self.quiet_s, self.looked_at = beats, 0.0, time.monotonic()

    def is_too_long(self, beats: int, *, limit_s: float, tick_s: float) -> bool:
        """Return whether `beats` has been the same for more than `limit_s`; look every `tick_s`."""
        now = time.monotonic()
        self.quiet_s += min(now - self.looked_at, tick_s)
        self.looked_at = now
        if beats != self.seen:
            self.seen, self.quiet_s = beats, 0.0
        return self.quiet_s > (limit_s if beats else max(limit_s, START_S))
