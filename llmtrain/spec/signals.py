"""What people and schedulers send to stop a process, and who hears it."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

Handler = Callable[[int, FrameType | None], None]

# submitit asks SLURM for USR2; other sites send USR1, HUP or TERM.
SCHEDULER_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
STOP_SIGNALS = (signal.SIGINT, *SCHEDULER_SIGNALS)


def handle(numbers: Iterable[signal.Signals], handler: Handler) -> dict[signal.Signals, object]:
    """Have `handler` called on each signal; return the handlers before.

    An ignored SIGHUP stays ignored: nohup means to go on.
    """
    nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    heard = [number for number in numbers if not (number == signal.SIGHUP and nohup)]
    return {number: signal.signal(number, handler) for number in heard}


def interrupt(number: int, _frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt with the signal's name, whichever it is."""
    raise KeyboardInterrupt(signal.Signals(number).name)


@contextlib.contextmanager
def handled(numbers: Iterable[signal.Signals], handler: Handler) -> Iterator[None]:
    """Have `handler` called on each signal during a `with` block.

    Outside the main thread nothing changes: Python gives signals to that one alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = handle(numbers, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)  # type: ignore[arg-type]
