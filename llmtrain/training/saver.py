"""Checkpoints beside the steps: a copy is taken between two of them, a thread does the rest."""

import threading
import time
from pathlib import Path
from typing import Any

from llmtrain.spec.settings import CheckpointConfig
from llmtrain.training.checkpoint import Snapshot, snapshot, write_checkpoint
from llmtrain.training.parallel import Team

CHECKPOINTS = "checkpoints"


class Saver:
    """Knows when the state of a run is to be saved, and saves it, one save at a time.

    While one is under way the host holds a copy of the state. What it was refused for (DiskError,
    CheckpointError) is raised once, by the next `check`, `wait` or `save`. Several devices would
    have to agree on that moment: they wait for their saves.
    """

    def __init__(self, directory: Path, run_id: str, config: CheckpointConfig, team: Team) -> None:
        """Start the clock of `every_s`."""
        self.folder, self.run_id = directory / CHECKPOINTS, run_id
        self.config, self.team = config, team
        self.in_background = config.background and team.n_devices == 1
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None
        self.saved_at = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Return whether the state after `step` steps is to be saved."""
        every = self.config.every_steps
        if every is not None and step % every == 0:
            return True
        if self.thread is not None and self.thread.is_alive():
            return False  # a slow disk need not hold the steps up
        return time.monotonic() - self.saved_at >= self.config.every_s

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Save `state`; collective. In the background, return as soon as it is copied.

        Waits for the save before.
        """
        self.wait()
        self.team.lead(lambda: self._save(step, state))
        self.saved_at = time.monotonic()

    def check(self) -> None:
        """Raise what a save was refused for; wait for none."""
        error, self.error = self.error, None
        if error is not None:
            raise error

    def wait(self) -> None:
        """Return when no save is under way; raise as `check` does."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        self.check()

    def _save(self, step: int, state: dict[str, Any]) -> None:
        taken = snapshot(state)
        if not self.in_background:
            self._write(step, taken)
            return
        self.thread = threading.Thread(target=self._attempt, args=(step, taken), name="saver")
        self.thread.start()

    def _attempt(self, step: int, taken: Snapshot) -> None:
        try:
            self._write(step, taken)
        except BaseException as error:
            self.error = error  # for the thread that takes the steps

    def _write(self, step: int, taken: Snapshot) -> None:
        keep = self.config.keep
        write_checkpoint(self.folder, taken, run_id=self.run_id, step=step, keep=keep)
