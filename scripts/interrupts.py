"""What a signal does where there is nothing to save: one line and exit code 75.

The scripts import this first. The training loop and the pool have handlers of their own.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from llmtrain.spec.errors import InterruptedRunError
from llmtrain.spec.signals import STOP_SIGNALS, handle, interrupt


def with_cleaning() -> None:
    """From here on a signal raises KeyboardInterrupt, so that what is open is closed."""
    handle(STOP_SIGNALS, interrupt)


def leave(code: int) -> NoReturn:
    """Leave with this code, whatever signals come on the way out."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def _leave_at_once(number: int, _frame: FrameType | None) -> NoReturn:
    program, name = Path(sys.argv[0]).name, signal.Signals(number).name
    if os.environ.get("LOCAL_RANK", "0") == "0":
        with contextlib.suppress(OSError):
            os.write(2, f"{program}: stopped by {name}; run the same command to go on\n".encode())
    os._exit(InterruptedRunError.exit_code)


# Not by an exception: one raised while modules are imported can get lost in the locks of imports.
if multiprocessing.parent_process() is None:  # a worker of the pool imports its script too
    handle(STOP_SIGNALS, _leave_at_once)
