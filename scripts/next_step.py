"""What to type when a sweep is finished."""

import shlex
from pathlib import Path


def analyze_next(directory: Path) -> str:
    """Return the line with the command that analyses a sweep's folder."""
    command = shlex.join(["python", "scripts/analyze.py", f"runs={directory}"])
    return f"next: {command}  (figures, report, law.json)"
