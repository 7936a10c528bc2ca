"""The energy of one short run, by llmtrain and by codecarbon beside it."""

import tempfile
import time
from collections.abc import Mapping
from typing import Any

from edge import compose

from benches import Bench, Facts, Seconds
from llmtrain.corpus.prepare import prepare
from llmtrain.corpus.shards import open_corpus
from llmtrain.spec.bill import JOULES_PER_KWH, bill_of
from llmtrain.spec.errors import ConfigError
from llmtrain.spec.settings import build_run

RUN = ("model=w64d4", "checkpoint.every_s=3600", "tracking.progress=false")
INSTALL = "pip install -e '.[carbon]'"


def measure(keys: Mapping[str, Any]) -> Seconds:
    """Return joules and grams of CO2e of one run by both. Raises ConfigError without codecarbon."""
    try:
        from codecarbon import OfflineEmissionsTracker  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(f"what=energy needs codecarbon: {INSTALL}") from error
    from llmtrain.training.loop import train  # noqa: PLC0415 - torch, only here

    with tempfile.TemporaryDirectory() as folder:
        own = [f"runs_root={folder}", "tracking.wandb=disabled", f"bill.region={keys['region']}"]
        budget = f"budget.flops={keys['gigaflops']}e9"
        config = build_run(compose("train", [*RUN, budget, *own]))[0]
        corpus = open_corpus(prepare(config.data))
        tracker = OfflineEmissionsTracker(
            country_iso_code=keys["region"],
            measure_power_secs=1,
            tracking_mode="process",
            save_to_file=False,  # it would write into the current folder
            log_level="error",
        )
        tracker.start()
        begin = time.perf_counter()
        try:
            record = train(config, corpus)
        finally:
            wall = time.perf_counter() - begin
            tracker.stop()
    found, bill = tracker.final_emissions_data, bill_of(record, config.bill)
    return {
        "run, s": wall,
        f"llmtrain, J ({record.energy_source})": record.energy_j or float("nan"),
        "codecarbon, processors, J": found.cpu_energy * JOULES_PER_KWH,
        "codecarbon, GPUs, J": found.gpu_energy * JOULES_PER_KWH,
        "codecarbon, memory, J": found.ram_energy * JOULES_PER_KWH,
        "llmtrain, mg CO2e": 1e6 * bill.co2e_kg if bill.co2e_kg is not None else float("nan"),
        "codecarbon, mg CO2e": 1e6 * found.emissions,
    }


def ratio(values: Seconds) -> Facts:
    """Return llmtrain's joules over codecarbon's for what both count: GPUs, else processors."""
    own = next(value for name, value in values.items() if name.startswith("llmtrain, J"))
    theirs = values["codecarbon, GPUs, J"] or values["codecarbon, processors, J"]
    return {"llmtrain's joules over codecarbon's": own / theirs}


BENCH = Bench(
    keys={"gigaflops": "1000"},
    text={"region": "FRA"},
    run=measure,
    facts=ratio,
    column="value",
    packages=("torch", "codecarbon"),
)
