"""How this process was started: alone, or by torchrun as one of several that train one run."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from llmtrain.spec.errors import ConfigError

NAMES = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE")  # torchrun sets all of them
LAUNCH = "torchrun --standalone --nproc-per-node N scripts/train.py runtime.parallel={} ..."


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """This process among those of its run."""

    rank: int
    """0 leads: it alone writes files."""
    local_rank: int
    """Number on its machine: which device it takes."""
    n_local: int
    """Processes of the run on this machine."""
    n_processes: int


def placement(parallel: str, environment: Mapping[str, str] = os.environ) -> Placement:
    """Return where this process stands under runtime.parallel=`parallel`.

    Raises ConfigError where the way it was started says another thing.
    """
    started = all(name in environment for name in NAMES)
    if parallel != "none" and not started:
        raise ConfigError(
            f"runtime.parallel={parallel} wants one process per device; "
            f"type: {LAUNCH.format(parallel)}"
        )
    if parallel == "none" and started:
        raise ConfigError(
            f"torchrun started {environment['WORLD_SIZE']} processes, but runtime.parallel=none "
            "would train the same run in each; add runtime.parallel=ddp or runtime.parallel=fsdp, "
            "or start with python"
        )
    if not started:
        return Placement(rank=0, local_rank=0, n_local=1, n_processes=1)
    rank, local_rank, n_local, n_processes = (int(environment[name]) for name in NAMES)
    return Placement(rank=rank, local_rank=local_rank, n_local=n_local, n_processes=n_processes)
