import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # simulator.py, processes.py


@pytest.fixture
def start_in_group(tmp_path):
    """Return a function that runs a script in a process group, which ends with the test."""
    started = []

    def run(script, *arguments, **environment):
        process = subprocess.Popen(
            [sys.executable, str(script), *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
