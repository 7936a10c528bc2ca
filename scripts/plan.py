"""Print the cells of a sweep, or of one run, as a table; nothing is trained.

  python scripts/plan.py sweep=demo
  python scripts/plan.py sweep=isoflop 'sweep.budgets=[1e16,3e16]'
  python scripts/plan.py sweep=isoflop sweep.mode=adaptive sweep.law=besiroglu     the first round
  python scripts/plan.py sweep=isoflop sweep.mode=lr_bracket                       with its rates
  python scripts/plan.py model=w256d6 budget.flops=1e15
  python scripts/plan.py sweep=demo format=csv > plan.csv
  python scripts/plan.py sweep=demo picture=plan.svg

Keys of its own, besides those of scripts/train.py:
  format=table      how the cells are printed: table, csv or json
  picture=FILE      draw sizes against budgets into FILE (.svg or .png)

Memory is estimated from the shapes; seconds from the runs that this machine has finished
under runs_root (else from bill.assumed_mfu and runtime.peak_tflops); energy, carbon and money from
the seconds and configs/bill.
"""

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import key_help
from edge import compose, key_values, run_edge
from screen import duration, open_console, say
from tables import columns_of, print_columns

from llmtrain.corpus.prepare import known_tokens
from llmtrain.scaling.plot.plan import draw_plan
from llmtrain.spec.bill import Bill, bill_for, total
from llmtrain.spec.errors import ConfigError
from llmtrain.spec.expense import bill_text
from llmtrain.spec.memory import GB, memory_bytes
from llmtrain.spec.plan import plan_run
from llmtrain.spec.recipe import outside_range
from llmtrain.spec.settings import TrainConfig, build_run
from llmtrain.spec.sweeps import SweepConfig
from llmtrain.spec.words import plural
from llmtrain.sweep.centre import describe, expected_params
from llmtrain.sweep.grid import Cell, Grid, Refused, family, plan_sweep
from llmtrain.sweep.pool import make_slots
from llmtrain.sweep.rounds import AdaptiveSweep, describe_round
from llmtrain.sweep.speed import (
    MIN_RUNS,
    Speed,
    assumed_speed,
    find_records,
    learn_speed,
    makespan,
)

OWN = {"format": "table", "picture": ""}
FORMATS = ("table", "csv", "json")
# Fact of a cell -> column of the table, and how it is printed there.
COLUMNS = {
    "budget": ("budget", ".3g"), "d_model": ("d_model", "d"), "n_layers": ("n_layers", "d"),
    "seed": ("seed", "d"), "n_params": ("N", ",d"), "n_tokens": ("D", ",d"),
    "tokens_per_param": ("D/N", ".1f"), "epochs": ("epochs", ".3f"), "n_steps": ("steps", "d"),
    "batch_tokens": ("batch", "d"), "peak_lr": ("lr", ".2e"), "flops": ("FLOPs", ".4g"),
    "budget_error": ("off", "+.3%"), "memory_gb": ("GB", ".3g"), "seconds": ("seconds", ".3g"),
}  # fmt: skip
GIVE_WAY = ("off", "FLOPs", "epochs", "GB", "batch", "seed", "lr", "steps")
"""Columns that a terminal leaves out where they are too many for it, the first one first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """A cell and what it will take."""

    cell: Cell
    memory_bytes: int
    seconds: float | None
    bill: Bill | None

    def facts(self) -> dict[str, Any]:
        """Return the cell on one level, as CSV and JSON have it."""
        plan, config = self.cell.plan, self.cell.config
        bill = self.bill
        return {
            "run_id": self.cell.run_id,
            "budget": config.budget.flops,
            "budget_tokens": config.budget.n_tokens,
            "d_model": config.model.d_model,
            "n_layers": config.model.n_layers,
            "seed": config.seed,
            "n_params": plan.params["no_input_embedding"],
            "n_tokens": plan.n_tokens,
            "tokens_per_param": plan.tokens_per_param,
            "epochs": plan.epochs,
            "n_steps": plan.n_steps,
            "batch_tokens": plan.batch_tokens,
            "peak_lr": plan.hyper.peak_lr,
            "flops": plan.flops[config.budget.convention],
            "flops_spent": self.cell.spent,
            "flops_convention": config.budget.convention,
            "budget_error": plan.budget_error,
            "memory_gb": self.memory_bytes / GB,
            "seconds": self.seconds,
            "energy": "unknown" if bill is None or bill.kwh is None else bill.mark,
            "kwh": None if bill is None else bill.kwh,
            "co2e_kg": None if bill is None else bill.co2e_kg,
            "money": None if bill is None else bill.money,
        }


def estimate(cell: Cell, speed: Speed | None) -> Planned:
    """Return the cell with its memory, and with its time and bill where the speed is known."""
    config, plan = cell.config, cell.plan
    seconds = bill = None
    if speed is not None:
        share = cell.spent / plan.flops[config.budget.convention]
        seconds = speed.seconds_of(share * plan.flops["full_attention"], config.model.d_model)
        bill = bill_for(seconds, config.bill, speed.hardware)
    memory = memory_bytes(config, plan).total
    return Planned(cell=cell, memory_bytes=memory, seconds=seconds, bill=bill)


def shown(facts: dict[str, Any]) -> list[str]:
    """Return a cell's line of the table; a question mark for what is not known.

    The budget of a run that was given tokens is these.
    """
    line = [
        "?" if facts[name] is None else f"{facts[name]:{form}}"
        for name, (_, form) in COLUMNS.items()
    ]
    return line if facts["budget"] is not None else [f"D={facts['budget_tokens']:.3g}", *line[1:]]


def cost_lines(planned: Sequence[Planned], speed: Speed | None, config: TrainConfig) -> list[str]:
    """Return what the cells take together, and what that rests on."""
    most = max(planned, key=lambda item: item.memory_bytes)
    lines = [f"memory: at most {most.memory_bytes / GB:.3g} GB, by {most.cell.run_id} (estimated)"]
    seconds = [item.seconds for item in planned if item.seconds is not None]
    if speed is None or not seconds:
        return [
            *lines,
            f"time and cost unknown: fewer than {MIN_RUNS} finished runs of this kind under "
            f"{config.runs_root}; set runtime.peak_tflops and bill.assumed_mfu to assume a speed",
        ]
    slots = min(len(make_slots(1)), len(seconds))
    error = "" if speed.error is None else f", median error {speed.error:.0%}"
    learnt = f"learnt from {plural(speed.n_runs, 'run')}{error}" if speed.n_runs else "not measured"
    lines.append(
        f"time: {duration(sum(seconds))} in all, {duration(makespan(seconds, slots))} on "
        f"{plural(slots, 'worker')} of {speed.machine} ({learnt})"
    )
    bill = total(item.bill for item in planned if item.bill)
    return [*lines, f"cost: {bill_text(bill, config.bill)}"]


def plan_grid(
    config: TrainConfig, sweep: SweepConfig, tokens: int | None
) -> tuple[Grid, list[str]]:
    """Return the cells of a sweep (an adaptive one's first round), and lines that explain them."""
    shapes = family(sweep, config.model)
    centres = ", ".join(
        f"C={flops:.3g}: N={expected_params(sweep, shapes, config, flops):.4g}"
        for flops in sweep.budgets
    )
    lines = [
        f"centred at {centres} (no_input_embedding)",
        f"expected optimum from {describe(sweep)}",
    ]
    if sweep.mode != "adaptive":
        return plan_sweep(config, sweep, unique_tokens=tokens), lines
    decision, grid = AdaptiveSweep(config, sweep, unique_tokens=tokens).first_round()
    return grid, [*lines, f"{describe_round(1, decision)}; later rounds depend on its losses"]


def split_own(overrides: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return this script's own keys, and the overrides that are train.py's. Raises ConfigError."""
    mine = [item for item in overrides if item.partition("=")[0] in OWN]
    own = OWN | key_values(mine, tuple(OWN))
    if own["format"] not in FORMATS:
        raise ConfigError(f"format={own['format']!r} is not one of {', '.join(FORMATS)}")
    if own["picture"] and Path(own["picture"]).suffix not in (".svg", ".png"):
        raise ConfigError(f"picture={own['picture']!r} must end in .svg or .png")
    return own, [item for item in overrides if item not in mine]


def main(overrides: list[str]) -> None:
    """Plan and print."""
    own, rest = split_own(overrides)
    config, sweep = build_run(compose("train", rest))
    tokens = known_tokens(config.data)
    lines: list[str] = []
    if sweep is None:
        plan = plan_run(config, vocab_size=config.data.vocab_size, unique_tokens=tokens)
        grid = Grid(cells=(Cell(config=config, plan=plan),), refused=())
    else:
        grid, lines = plan_grid(config, sweep, tokens)
    speed = learn_speed(find_records(Path(config.runs_root)), config.runtime)
    speed = assumed_speed(config) if speed is None else speed
    planned = [estimate(cell, speed) for cell in grid.cells]
    facts = [item.facts() for item in planned]
    if own["picture"]:
        draw_plan(facts, Path(own["picture"]))
    if own["format"] == "json":
        print(json.dumps(facts, indent=1))
    elif own["format"] == "csv":
        writer = csv.DictWriter(sys.stdout, fieldnames=list(facts[0]) if facts else [])
        writer.writeheader()
        writer.writerows(facts)
    else:
        notes = cost_lines(planned, speed, config) if planned else []
        print_plan(grid, facts, [*lines, *saved_line(grid), *notes, *warnings(grid, tokens)])


def saved_line(grid: Grid) -> list[str]:
    """Return what trunks and branches save, where there are any."""
    whole = sum(cell.plan.flops[cell.config.budget.convention] for cell in grid.cells)
    spent = sum(cell.spent for cell in grid.cells)
    if spent >= whole:
        return []
    return [
        f"trunks and branches: {spent:.4g} FLOPs are spent, {1 - spent / whole:.1%} less than the "
        "cells one by one"
    ]


def warnings(grid: Grid, tokens: int | None) -> list[str]:
    """Return what a reader of the plan should know."""
    found = dict.fromkeys(
        outside_range(cell.config.recipe.name, cell.plan.params["no_input_embedding"])
        for cell in grid.cells
    )
    lines = [f"note: {note}; some cells lie outside" for note in found if note]
    if tokens is None:
        lines.append("note: the corpus is not prepared yet, so epochs are unknown")
    return lines


def refused_lines(refused: Sequence[Refused]) -> list[str]:
    """Return a line for every shape and reason, with the seeds that share them."""
    seeds: dict[tuple[str, str], set[int]] = {}
    for item in refused:
        shape = f"w{item.d_model}d{item.n_layers}"
        seeds.setdefault((shape, item.reason), set()).add(item.seed)
    return [
        f"refused: {shape} seed{'s' * (len(own) > 1)} {', '.join(map(str, sorted(own)))}: {reason}"
        for (shape, reason), own in seeds.items()
    ]


def print_plan(grid: Grid, facts: Sequence[dict[str, Any]], lines: Sequence[str]) -> None:
    """Print the table, the refused cells, the sum and `lines`."""
    console = open_console()
    titles = [title for title, _ in COLUMNS.values()]
    columns = columns_of(titles, list(map(shown, facts))) if facts else []
    if hidden := [column.title for column in print_columns(console, columns, GIVE_WAY)]:
        say(console, f"no room here for {', '.join(hidden)}; format=csv has every column")
    for line in refused_lines(grid.refused):
        say(console, line, indent="  ")
    whole = sum(cell["flops"] for cell in facts)
    convention = f"{facts[0]['flops_convention']}; " if facts else ""
    say(
        console,
        f"{plural(len(facts), 'cell')}, {len(grid.refused)} refused; {whole:.4g} FLOPs in all "
        f"({convention}N without the input embedding)",
    )
    for line in lines:
        say(console, line)


if __name__ == "__main__":
    if key_help.is_asked_for():
        __doc__ = f"{__doc__}\n{key_help.train_keys()}"
    run_edge(main)
