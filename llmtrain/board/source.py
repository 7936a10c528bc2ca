"""Where `runs=` points: at a folder or file as it is, at wandb's server, or at its local files."""

import re
from pathlib import Path

from llmtrain.board.fetched import FetchedRun, lay_down
from llmtrain.board.offline import offline_files, read_offline_runs
from llmtrain.board.pull import fetch_group
from llmtrain.spec.errors import ConfigError
from llmtrain.spec.record import RECORD_FILE

PREFIX = "wandb:"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
FETCHED = Path("runs") / "wandb"


def group_of(source: str) -> tuple[str, str, str] | None:
    """Return entity, project and group of `wandb:ENTITY/PROJECT/GROUP`; None for another source."""
    if not source.startswith(PREFIX):
        return None
    parts = source.removeprefix(PREFIX).split("/")
    if len(parts) != 3 or not all(NAME.fullmatch(part) for part in parts):
        raise ConfigError(f"runs={source}: write runs=wandb:ENTITY/PROJECT/GROUP")
    return parts[0], parts[1], parts[2]


def local_runs(source: str) -> Path:
    """Return the folder or file that holds the runs of `source`, fetched if need be.

    What comes from wandb is laid down under runs/wandb as a sweep's folder, so that it meets the
    same guards as any other. Raises ConfigError where there is nothing.
    """
    group = group_of(source)
    if group is not None:
        return _laid_down(source, FETCHED.joinpath(*group), list(fetch_group(*group)))
    path = Path(source)
    if path.is_dir() and not any(path.glob(f"*/{RECORD_FILE}")) and (files := offline_files(path)):
        runs = [run for run in read_offline_runs(files) if run.job_type != "analysis"]
        return _laid_down(source, FETCHED / "offline" / (path.resolve().name or "runs"), runs)
    return path


def _laid_down(source: str, folder: Path, runs: list[FetchedRun]) -> Path:
    if not runs:
        raise ConfigError(f"runs={source} holds no training runs; check entity, project and group")
    return lay_down(runs, folder)
