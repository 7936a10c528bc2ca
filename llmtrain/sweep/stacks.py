"""Cells that one worker trains as one: those of one shape that differ in seed and rate alone."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmtrain.spec.rundir import run_directory
from llmtrain.spec.settings import TrainConfig
from llmtrain.spec.stacking import stack_key
from llmtrain.sweep.ledger import FAILURES_FILE
from llmtrain.sweep.process import Job


def stack_jobs(jobs: Mapping[Path, Job], configs: Sequence[TrainConfig]) -> list[Job]:
    """Return the jobs with at most runtime.stack of a kind joined into one, as evenly as can be.

    A cell that has failed before stays alone: it may be what took the others along.
    """
    config_of = {run_directory(config): config for config in configs}
    kinds: dict[TrainConfig, list[Job]] = {}
    found: list[Job] = []
    for path, job in jobs.items():
        key = stack_key(config_of[path])
        if key is None or key.runtime.stack == 1 or (path / FAILURES_FILE).is_file():
            found.append(job)
        else:
            kinds.setdefault(key, []).append(job)
    for key, alike in kinds.items():
        n_stacks = math.ceil(len(alike) / key.runtime.stack)
        found += [_join(alike[i::n_stacks]) for i in range(n_stacks)]
    return found


def _join(parts: Sequence[Job]) -> Job:
    if len(parts) == 1:
        return parts[0]
    return Job(
        name=f"{parts[0].name}+{len(parts) - 1}",
        payload={"stack": [part.payload["config"] for part in parts]},
        cost=sum(part.cost for part in parts),
        parts=tuple(parts),
    )
