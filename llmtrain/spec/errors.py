"""The errors that users meet: one line each, each with the exit code a script leaves with."""

from typing import ClassVar


class LlmtrainError(Exception):
    """Base of every error meant for users; the message names the value, the rule and the remedy."""

    exit_code: ClassVar[int] = 1


class ConfigError(LlmtrainError):
    """Configuration or input is refused, before any file, device or network is touched."""

    exit_code = 2


class PlanError(ConfigError):
    """A cell that cannot be trained as asked: too few steps, too many epochs, off its budget."""


class CheckpointError(LlmtrainError):
    """Checkpoints exist, but none of them is usable."""

    exit_code = 3


class RunLockedError(LlmtrainError):
    """Another process holds the run directory."""

    exit_code = 4


class MismatchError(LlmtrainError):
    """Data, tokenizer or configuration differ from what is already on disk."""

    exit_code = 5


class DivergedError(LlmtrainError):
    """The loss or a gradient stopped being a number; the run is final and is never fitted."""


class OutOfMemoryError(LlmtrainError):
    """The device is too small for one row of the run per pass."""


class DeviceLostError(LlmtrainError):
    """The GPU failed under a run, and would fail under the next one in the same process."""


class DiskError(LlmtrainError):
    """The disk takes no more, or not from us: full, quota, read-only; every other run meets it."""


class HangError(LlmtrainError):
    """A run made no progress within its limit; its stack is in its folder."""

    exit_code = 6


class FitRefusedError(LlmtrainError):
    """The runs at hand do not identify a law; the message says what would cure it."""

    exit_code = 7


class InterruptedRunError(LlmtrainError):
    """A signal arrived and the state was saved; the same command goes on."""

    exit_code = 75
