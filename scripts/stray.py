"""What workers write to stderr, while a view that is drawn again and again owns the screen."""

import os
import threading
from collections.abc import Callable

STDERR = 2
LAST_WORDS_S = 0.2  # for what is still in the pipe


class StrayLines:
    """Takes stderr, which workers inherit, and hands every line to `say` until it is given back."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.stderr = os.dup(STDERR)
        there, here = os.pipe()
        os.dup2(here, STDERR)
        os.close(here)
        self.thread = threading.Thread(target=self._read, args=(there,), daemon=True)
        self.thread.start()

    def give_back(self) -> None:
        """Put stderr back; what workers that stay warm write is said as long as they live."""
        os.dup2(self.stderr, STDERR)
        os.close(self.stderr)
        self.thread.join(timeout=LAST_WORDS_S)

    def _read(self, there: int) -> None:
        with open(there, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.strip():
                    self.say(line.rstrip())
