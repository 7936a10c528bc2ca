"""A run outside the pool watches itself: without a sign of life it leaves and says where it was."""

import contextlib
import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from llmtrain.spec import rundir
from llmtrain.spec.errors import HangError
from llmtrain.spec.placement import placement
from llmtrain.spec.record import Spent
from llmtrain.spec.settings import TrainConfig
from llmtrain.spec.silence import STACK_FILE, Silence
from llmtrain.training.runtime import warn

TICK_S = 1.0
LEAVE_S = 3.0  # what the last words may take: the file system may be what hangs


@contextlib.contextmanager
def watched(config: TrainConfig) -> Iterator[Callable[[], None]]:
    """Yield a function to call as a sign of life, for the `on_step` of a run.

    Without one for runtime.hang_s seconds the process leaves with HangError's exit code; the stacks
    of its threads are in stack.txt of the run's folder, the reason is in state.json. The watching
    thread needs Python's lock: a C call that never gives it back is not seen.
    """
    if config.runtime.hang_s is None:
        yield lambda: None
        return
    watch = _Watch(config, config.runtime.hang_s)
    watch.start()
    try:
        yield watch.note
    finally:
        watch.over.set()


class _Watch(threading.Thread):
    """Looks at a counter of signs of life every second, or four times per limit."""

    def __init__(self, config: TrainConfig, limit_s: float) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.config, self.limit_s = config, limit_s
        self.tick_s = min(TICK_S, limit_s / 4)
        self.beats = 0
        self.over = threading.Event()
        self.begin = time.perf_counter()
        self.before = rundir.read_spent(rundir.run_directory(config))

    def note(self) -> None:
        """Count a sign of life."""
        self.beats += 1

    def run(self) -> None:
        """Look until the run is over, or hangs."""
        silence = Silence(self.beats)
        while not self.over.wait(self.tick_s):
            if silence.is_too_long(self.beats, limit_s=self.limit_s, tick_s=self.tick_s):
                self._leave()

    def _leave(self) -> NoReturn:
        threading.Timer(LEAVE_S, os._exit, [HangError.exit_code]).start()
        directory = rundir.run_directory(self.config)
        rank = placement(self.config.runtime.parallel).rank
        name = STACK_FILE if rank == 0 else f"rank{rank}-{STACK_FILE}"
        reason = f"no step for runtime.hang_s={self.limit_s:g}; {name} says where it stood"
        warn(f"{directory.name}: {reason}")
        with contextlib.suppress(OSError):
            with (directory / name).open("w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file, all_threads=True)
            if rank == 0:
                rundir.write_state(directory, "failed", reason, self._spent(directory))
        os._exit(HangError.exit_code)

    def _spent(self, directory: Path) -> Spent | None:
        """Return what the run has used with the silence; None where it never said."""
        noted, here_s = rundir.read_spent(directory), time.perf_counter() - self.begin
        return noted and noted.until(here_s + (self.before.wall_s if self.before else 0.0))
