"""What a signal does where there is nothing to save: one line and exit code 75.

The scripts import this first. The training loop and the pool have handlers of their own.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from llmtrain.spec.errors import InterruptedRunError
from llmtrain.spec.signals import STOP_SIGNALS, handle, interrupt

AGAIN_S = 1.0


def with_cleaning() -> None:
    """From here on a signal raises KeyboardInterrupt, so that what is open is closed.

    Another one that follows within AGAIN_S does not: the first is still on its way.
    """
    heard = -AGAIN_S

    def interrupt_once(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        if time.monotonic() - heard >= AGAIN_S:
            heard = time.monotonic()
            interrupt(number, frame)

    handle(STOP_SIGNALS, interrupt_once)


def ignored() -> None:
    """From here on nothing changes by a signal: what is left to do takes no time."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _leave_at_once(number: int, _frame: FrameType | None) -> NoReturn:
    handle(STOP_SIGNALS, _say_nothing)  # another one would say a line of its own
    program, name = Path(sys.argv[0]).name, signal.Signals(number).name
    if os.environ.get("LOCAL_RANK", "0") == "0":
        with contextlib.suppress(OSError):
            os.write(2, f"{program}: stopped by {name}; run the same command to go on\n".encode())
    os._exit(InterruptedRunError.exit_code)


def _say_nothing(_number: int, _frame: FrameType | None) -> None:
    """Let the first signal do."""


# Not by an exception: one raised while modules are imported can get lost in the locks of imports.
if multiprocessing.parent_process() is None:  # a worker of the pool imports its script too
    handle(STOP_SIGNALS, _leave_at_once)
