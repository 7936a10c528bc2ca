"""What tests ask of processes."""

import time
from pathlib import Path

LIMIT_S = 240.0  # of a machine ten times slower, and crowded


def wait_for(condition):
    """Return once it holds; fail after LIMIT_S."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_gone(pid):
    """Return whether a process has ended; one that nobody has collected yet has."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"
