"""What a run has used over all its starts: counted on where it is resumed, noted in state.json."""

from pathlib import Path

import torch

from llmtrain.spec import rundir
from llmtrain.spec.errors import InterruptedRunError
from llmtrain.spec.record import Spent
from llmtrain.spec.settings import RuntimeConfig
from llmtrain.training import runtime
from llmtrain.training.energy import EnergyMeter
from llmtrain.training.parallel import Team
from llmtrain.training.session import Session
from llmtrain.training.summary import joules_so_far, spent_so_far


class Spending:
    """The energy meter of a run, and the place where its seconds and joules are noted."""

    def __init__(
        self, directory: Path, config: RuntimeConfig, device: torch.device, team: Team
    ) -> None:
        self.directory, self.team = directory, team
        self.energy = EnergyMeter(device)
        self.hardware = runtime.hardware(device, config) | {"n_devices": str(team.n_devices)}
        self.before = team.lead(lambda: rundir.read_spent(directory))
        self.state = "running"
        self.saved_joules: float | None = None

    def count_on(self, session: Session, joules: float | None) -> None:
        """Count on from the `joules` of the checkpoint that the session goes on from.

        0.0 without a checkpoint, None where it does not say. What an earlier start has noted since
        is undone, and was paid for all the same.
        """
        kept_s = sum(session.seconds.values())
        if self.before is not None and self.before.wall_s > kept_s:
            session.seconds["undone"] += self.before.wall_s - kept_s
            joules = self.before.measured_j
        self.energy.start_from(None if joules is None else joules / self.team.n_devices)

    def joules(self, session: Session) -> float | None:
        """Return the joules of all devices for a checkpoint, None where unknown; collective."""
        self.saved_joules = joules_so_far(session, self.energy)
        return self.saved_joules

    def note(self, session: Session, state: str) -> None:
        """Write how far the run is, and what it has used; collective."""
        self.state = state
        spent = self._spent(session, self.joules(session))
        self.team.lead(lambda: rundir.write_state(self.directory, state, spent=spent))

    def at_the_end(self, session: Session, error: BaseException) -> Spent:
        """Return what a run that `error` ends has used.

        Other devices can no longer be asked: their joules are those of the save that a stop waits
        for, and an estimate after a failure.
        """
        joules = None
        if self.team.n_devices == 1:
            joules = self.joules(session)
        elif isinstance(error, InterruptedRunError):
            joules = self.saved_joules
        return self._spent(session, joules)

    def _spent(self, session: Session, joules: float | None) -> Spent:
        return spent_so_far(session, joules, self.energy.source, self.hardware)
