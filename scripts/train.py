"""Train one run, or a sweep of runs.

  python scripts/train.py model=w64d4 budget.flops=1e12
  python scripts/train.py -m model=w32d2,w64d4 budget.flops=1e11,1e12
  python scripts/train.py sweep=demo
  python scripts/train.py sweep=isoflop sweep.name=NAME 'sweep.budgets=[1e15,3e15,1e16]'
  python scripts/train.py sweep=isoflop 'only=[1e16,C3e16-w256*]' dry_run=true
  python scripts/train.py sweep=isoflop retry=failed
  python scripts/train.py sweep=isoflop hydra/launcher=slurm hydra.launcher.n_tasks=8
  torchrun --standalone --nproc-per-node 2 scripts/train.py runtime=gpu runtime.parallel=ddp

Every key of configs/ can be set as key=value. A run that is finished is not run again; a run that
was stopped goes on. Results: runs/<name>/<run_id>/record.json.
"""

import interrupts  # first: what it sets up holds while the others are imported

# isort: split
import os
import sys
from pathlib import Path

import hydra
import key_help
from console import RunConsole
from edge import CONFIG_DIR, check_overrides, guarded
from help_text import fitted_help
from omegaconf import DictConfig
from screen import say
from sweep_console import SweepConsole

from llmtrain.corpus.prepare import prepare
from llmtrain.spec.check import check
from llmtrain.spec.compile_cache import compile_cache
from llmtrain.spec.placement import placement
from llmtrain.spec.plan import plan_run
from llmtrain.spec.record import RECORD_FILE
from llmtrain.spec.rundir import run_directory
from llmtrain.spec.settings import TrainConfig, build_launch, build_run
from llmtrain.spec.sweeps import LaunchConfig
from llmtrain.spec.words import plural
from llmtrain.sweep.grid import Cell
from llmtrain.sweep.launcher import HANDS, plain
from llmtrain.sweep.ledger import cell_status, facts, is_done
from llmtrain.training.worker import compile_cell, opened, work


def train_one(config: TrainConfig, launch: LaunchConfig) -> None:
    """Train one run in this process and print its result."""
    given = f"only={','.join(launch.only)}" if launch.only else f"retry={launch.retry}"
    check(
        given == "retry=none",
        f"{given} is for sweeps (sweep=..., or -m), not for one run; leave it out",
    )
    leads = placement(config.runtime.parallel).rank == 0
    plan = plan_run(config, vocab_size=config.data.vocab_size, unique_tokens=None)
    if launch.dry_run:  # before any file
        cell = Cell(config=config, plan=plan)
        found = cell_status(run_directory(config), facts(cell))
        done = found.state == "done"
        HANDS.watcher.would_run([] if done else [found], [found] if done else [])
        return
    # 1.4 s, after the config is checked
    from llmtrain.training.memory import train_in_memory  # noqa: PLC0415
    from llmtrain.training.watchdog import watched  # noqa: PLC0415

    interrupts.with_cleaning()
    directory = run_directory(config)
    done_before = is_done(directory)
    try:
        corpus = opened(prepare(config.data))
        with (
            compile_cache([config]),
            RunConsole(enabled=config.tracking.progress and leads) as console,
            watched(config) as alive,
        ):
            record = train_in_memory(config, corpus, on_progress=console.show, on_step=alive)
    finally:
        interrupts.ignored()
    if leads:
        console.result(record, directory, done_before=done_before)


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="train")
def main(composed: DictConfig) -> None:
    """Train the one run that Hydra composed; sweeps go through the sweeper and launcher."""
    # SystemExit passes through Hydra, which would print an exception with all its overrides.
    raw = plain(composed)
    code = guarded(lambda: train_one(build_run(raw)[0], build_launch(raw)))
    if "WORLD_SIZE" in os.environ:  # gloo's threads can abort an interpreter that shuts down
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(console: SweepConsole | None = None) -> None:
    """Check the arguments, then let Hydra compose and call; `console` is told of a sweep."""
    console = console or SweepConsole()
    flags = [a for a in sys.argv[1:] if a in ("-m", "--multirun")]
    overrides = [a for a in sys.argv[1:] if a not in flags]
    check_overrides(overrides)
    sys.argv[1:] = [*flags, *overrides]  # argparse wants the flag before the first override
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to `guarded`, which makes one line of them
    HANDS.work, HANDS.compiling = work, compile_cell
    HANDS.watcher = console
    HANDS.drain = (sys.executable, str(Path(__file__).resolve().with_name("drain.py")))
    try:
        main()
    finally:
        console.conclude()
    if console.is_done and any(override.startswith("sweep=") for override in overrides):
        for directory in dict.fromkeys(path.parent for path in console.cells):
            n_runs = len(list(directory.glob(f"*/{RECORD_FILE}")))
            say(console.console, f"fitting the law to {plural(n_runs, 'run')}")
            from ending import sweep_ending  # noqa: PLC0415 - scipy, when there is something to fit

            for line in sweep_ending(directory):
                say(console.console, line)


if __name__ == "__main__":
    if key_help.is_asked_for():
        print(fitted_help(f"{__doc__}\n{key_help.train_keys()}"))
    else:
        code = guarded(run)
        interrupts.ignored()
        sys.exit(code)
