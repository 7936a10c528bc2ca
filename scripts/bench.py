"""Time a part of llmtrain on this machine.

  python scripts/bench.py what=step models=w32d2,w128d4 variants=float32,bfloat16
  python scripts/bench.py what=run model=w64d4 tokens=300000
  python scripts/bench.py what=sweep sweep=demo
  python scripts/bench.py what=cost picture=cost.png
  python scripts/bench.py what=analysis repeats=5 draws=1000 out=bench.json
  python scripts/bench.py what=pool cells=12 steps=50
  python scripts/bench.py what=peer peer=PATH/nanoGPT
  python scripts/bench.py what=energy region=FRA

Keys:
  what=step         one optimizer step, by shape and option: tokens/s, MFU over the matmul rate
                    measured beside it, GB at its widest (besides weights, on a CPU moments too),
                    seconds to compile and capture, with torch's cache as it is
                    (models=w32d2,w64d4,w128d4, steps=50, tokens=4096 a step, seq_len=128,
                    vocab=256, variants=float32,bfloat16; float32-compiled, bfloat16-compiled,
                    chunked, bfloat16-chunked and, on a GPU, bfloat16-cudnn, bfloat16-graph and
                    bfloat16-compiled-graph are others; peer=PATH: nanoGPT on each shape too)
  what=run          seconds of runs of `tokens` x 1, 3 and 10, warm and as a command each: the fixed
                    cost of a run (model=w32d2, tokens=102400, set="KEY=VALUE ...")
  what=sweep        a sweep from the command to the fitted curve: where its time goes, its MFU
                    (sweep=demo, set="KEY=VALUE ...", per_device=1: cells at once on a GPU or core)
  what=cost         how time grows with cells, model size and tokens, and memory with model size
                    (picture=FILE draws it)
  what=analysis     load, fits and bootstrap, figures and report of 250 planted runs (draws=1000)
  what=pool         the same tiny cells in warm workers and in a process each (cells=12, steps=50)
  what=compile      a sweep of shapes that compile, alone, with a process that compiles ahead on a
                    core of its own, and with all of it compiled before (cells=5, steps=400)
  what=peer         a sweep's shapes, batches and text beside nanoGPT's own loop, which is checked
                    out at peer=PATH (sweep=demo, set="KEY=VALUE ...")
  what=stacked      runs of one shape stepped as one, and one after another (replicas=4, width=64,
                    layers=2, tokens=2048, steps=20, set="KEY=VALUE ...")
  what=tracking     one run of a minute with and without wandb
  what=energy       joules and CO2e of one run by llmtrain and by codecarbon (gigaflops=1000,
                    region=FRA); needs pip install -e '.[carbon]'
  repeats=3         how often; the median is printed, with the range
  out=FILE          the same as JSON, with hardware, load, versions, commit and command

Compare figures of one call only: machines have moods.
"""

import json
import os
import platform
import shlex
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from benches import Bench
from edge import key_values, run_edge
from rich.table import Table
from screen import ScriptConsole

from llmtrain import __version__
from llmtrain.spec.code import code_id
from llmtrain.spec.disk import write_whole
from llmtrain.spec.errors import ConfigError

# Modules of benches/; each holds a BENCH.
PARTS = (
    *("step", "run", "sweep", "cost", "pool"),
    *("analysis", "compile", "peer", "stacked", "tracking", "energy"),
)
COMMON = {"what": "analysis", "repeats": "3", "out": ""}


def machine(packages: tuple[str, ...]) -> dict[str, str]:
    """Return hardware, load, versions and code: what a figure depends on."""
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    gpu = {}
    if "torch" in packages:
        from llmtrain.training.runtime import gpu_facts  # noqa: PLC0415 - the analysis does without

        gpu = gpu_facts()
    return {
        "cpu": cpu_name(),
        "cores": str(len(os.sched_getaffinity(0))),
        "load": load,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        **gpu,
        "llmtrain": __version__,
        "code": code_id(),
    }


def cpu_name() -> str:
    """Return the processor's name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def options(overrides: list[str]) -> tuple[Bench, dict[str, str], dict[str, Any]]:
    """Return the bench, its common keys and its own. Raises ConfigError."""
    chosen = [override.removeprefix("what=") for override in overrides if override[:5] == "what="]
    what = chosen[0] if chosen else COMMON["what"]
    if what not in PARTS:
        raise ConfigError(f"what={what} is not one of {', '.join(PARTS)}")
    bench: Bench = import_module(f"benches.{what}").BENCH
    known = COMMON | dict(bench.keys) | dict(bench.text)
    taken = known | key_values(overrides, tuple(known))
    numbers = {name: taken[name] for name in ("repeats", *bench.keys)}
    for name, value in numbers.items():
        if not value.isdecimal() or int(value) < 1:
            raise ConfigError(f"{name}={value} must be a whole number above 0")
    keys: dict[str, Any] = {name: int(value) for name, value in numbers.items()}
    keys |= {name: taken[name] for name in bench.text}
    return bench, {name: taken[name] for name in COMMON}, keys


def main(overrides: list[str]) -> None:
    """Run one bench, print its table, write its JSON."""
    bench, common, keys = options(overrides)
    before = machine(bench.packages)
    found = [bench.run(keys) for _ in range(keys["repeats"])]
    seconds = {name: median(run[name] for run in found) for name in found[0]}
    facts = bench.facts(seconds)
    shown = Table(
        title=f"{common['what']}: median of {keys['repeats']}", box=None, title_justify="left"
    )
    shown.add_column("what", no_wrap=True)
    for heading in (f"median, {bench.column}", "range"):
        shown.add_column(heading, justify="right")
    for name, value in seconds.items():
        values = [run[name] for run in found]
        shown.add_row(name, f"{value:.4g}", f"{min(values):.4g} to {max(values):.4g}")
    ScriptConsole(highlight=False).print(shown)
    for name, fact in facts.items():
        print(f"{name}: {fact:.3g}")
    print(", ".join(f"{name} {value}" for name, value in before.items()))
    if common["out"]:
        document = {
            "what": common["what"],
            "command": shlex.join(["python", "scripts/bench.py", *sys.argv[1:]]),
            "keys": keys,
            "runs": found,
            "median": seconds,
            "facts": facts,
            "machine": before,
        }
        text = json.dumps(document, indent=1)
        write_whole(Path(common["out"]), text + "\n")


if __name__ == "__main__":
    run_edge(main)
