"""A team's runs, read back from wandb's server."""

import contextlib
import io
from collections.abc import Iterator
from typing import Any

from llmtrain.board.fetched import FetchedRun, plain_row
from llmtrain.board.identity import has_key
from llmtrain.spec.errors import ConfigError

TIMEOUT_S = 30
PER_PAGE = 50


def fetch_group(entity: str, project: str, group: str) -> Iterator[FetchedRun]:
    """Yield every training run of a group: summary, and history of those that finished.

    Raises ConfigError, in one line, where the server, the key or the names give nothing.
    """
    where = f"runs=wandb:{entity}/{project}/{group}"
    if not has_key():
        raise ConfigError(f"{where} needs a key: run `wandb login` or set WANDB_API_KEY")
    try:
        import wandb  # noqa: PLC0415 - 0.35 s, and only this source needs it
    except ImportError as error:
        raise ConfigError(f"{where}: {error}; pip install wandb") from error
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # wandb's own chat about the login
            api = wandb.Api(timeout=TIMEOUT_S)
        runs = api.runs(
            f"{entity}/{project}", filters={"group": group}, per_page=PER_PAGE, lazy=False
        )
        for run in runs:
            if run.group == group and run.job_type != "analysis":
                yield _fetched(run)
    except (wandb.Error, ValueError, OSError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{where}: {first}; check the names and `wandb login`") from error


def _fetched(run: Any) -> FetchedRun:
    finished = run.state == "finished"
    # Never `run.history()`, which is a random sample of 500 points.
    rows = run.scan_history(use_cache=False) if finished else ()
    steps: dict[int, dict[str, Any]] = {}
    for row in rows:
        steps.setdefault(int(row["_step"]), {}).update(plain_row(row))
    return FetchedRun(
        wandb_id=run.id,
        name=run.name,
        state=run.state,
        group=run.group,
        job_type=run.job_type,
        config=dict(run.config),
        summary=dict(run.summary),
        rows=tuple(steps[step] for step in sorted(steps)),
    )
