"""The processes that wandb starts for a courier."""

import subprocess
import time


def processes_of(courier: int) -> list[str]:
    """Return the command lines of wandb's own processes that watch this courier."""
    command = ["ps", "-ww", "-eo", "args"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return [line for line in listed.stdout.splitlines() if f"--pid {courier} " in f"{line} "]


def wait_until_gone(courier: int) -> None:
    """Return when none of them is left: they notice by themselves that the courier has ended."""
    deadline = time.monotonic() + 120
    while left := processes_of(courier):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
