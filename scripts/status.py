"""Print how a sweep stands: which cells are done, running, stopped or failed, why, how long yet.

  python scripts/status.py runs=runs/demo
  python scripts/status.py runs=runs/demo watch=2
  python scripts/status.py runs=runs/demo json=true

Keys: runs (required), watch=SECONDS (look again until nothing is left to do), json=true (one JSON
object per look). A terminal gets a table, anything else plain lines.
"""

import dataclasses
import functools
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edge import key_values, run_edge
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llmtrain.spec.errors import ConfigError
from llmtrain.sweep.ledger import PASSED_BY, STATES, CellStatus, read_sweep, time_left
from llmtrain.sweep.pool import make_slots

STYLES = {"done": "green", "running": "cyan", "failed": "red", "quarantined": "red"}


def main(overrides: list[str]) -> None:
    """Read the ledger and print it, once or until nothing is left to do."""
    given = {"watch": "", "json": "false"} | key_values(overrides, ("runs", "watch", "json"))
    if "runs" not in given or given["json"] not in ("true", "false"):
        raise ConfigError("status.py takes runs=runs/NAME, watch=SECONDS and json=true")
    every_s = seconds(given["watch"])
    look = functools.partial(read_sweep, Path(given["runs"]))
    console = Console(highlight=False, soft_wrap=True)
    if given["json"] == "true":
        watch(look, every_s, lambda cells: print(json.dumps(as_json(cells)), flush=True))
    elif not console.is_terminal:
        watch(look, every_s, lambda cells: print("\n".join(lines(cells)), flush=True))
    elif every_s is None:
        console.print(table(look()))
    else:
        with Live(table(look()), console=console, auto_refresh=False) as live:
            watch(look, every_s, lambda cells: live.update(table(cells), refresh=True))


def seconds(text: str) -> float | None:
    """Return the seconds of `watch`, None where it is not given. Raises ConfigError."""
    if text == "":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigError(f"watch={text} must be seconds above 0, as in watch=2")
    return value


def watch(
    look: Callable[[], list[CellStatus]],
    every_s: float | None,
    show: Callable[[list[CellStatus]], None],
) -> None:
    """Show the cells once, or every `every_s` seconds until all are done or have failed."""
    while True:
        cells = look()
        show(cells)
        if every_s is None or all(cell.state in ("done", *PASSED_BY) for cell in cells):
            return
        time.sleep(every_s)


def lines(cells: Sequence[CellStatus]) -> list[str]:
    """Return one plain line per cell, then the summary."""
    width = max((len(cell.state) for cell in cells), default=0)
    return [
        *(f"{cell.state:<{width}} {cell.run_id}  {outcome(cell)}".rstrip() for cell in cells),
        *summary(cells),
    ]


def table(cells: Sequence[CellStatus]) -> RenderableType:
    """Return the summary and the cells as a table under it, where a low screen may cut it."""
    shown = Table(box=None, pad_edge=False)
    for name in ("cell", "state"):
        shown.add_column(name, no_wrap=True)
    for name in ("N", "D", "trained"):
        shown.add_column(name, justify="right")
    shown.add_column("loss, or why not")
    for cell in cells:
        facts, share = cell.facts, trained(cell)
        shown.add_row(
            cell.run_id,
            Text(cell.state, style=STYLES.get(cell.state, "")),
            f"{facts['n_params']:,}" if "n_params" in facts else "?",
            f"{facts['n_tokens']:,}" if "n_tokens" in facts else "?",
            "?" if share is None else f"{share:.0%}",
            Text(outcome(cell)),
        )
    return Group(*(Text(line) for line in summary(cells)), shown)


def outcome(cell: CellStatus) -> str:
    """Return what a cell has come to."""
    return cell.reason or ("" if cell.val_loss is None else f"loss {cell.val_loss:.4f}")


def trained(cell: CellStatus) -> float | None:
    """Return the share of a cell's FLOPs that is done; None where the plan does not know it."""
    if cell.state == "done":
        return 1.0
    return cell.flops_done / cell.facts["flops"] if "flops" in cell.facts else None


def summary(cells: Sequence[CellStatus]) -> list[str]:
    """Return the counts by state, the time left and what it rests on, and what to do next."""
    counts = Counter(cell.state for cell in cells)
    known = [f"{counts[state]} {state}" for state in STATES if counts[state]]
    found = [f"{len(cells)} cells: {', '.join(known)}"]
    if (left := time_left(cells, len(make_slots(1)))) is not None:
        found.append(
            f"about {duration(left.seconds)} left: {left.flops_left:.3g} FLOPs x "
            f"{left.seconds_per_flop:.3g} s per FLOP (mean of {left.n_finished} finished cells) / "
            f"{left.n_slots} {'at work' if left.at_work else 'slots of this machine'}"
        )
    if counts["quarantined"]:
        found.append(
            "quarantined cells failed twice in the same way: retry=failed tries them again"
        )
    return found


def duration(value: float) -> str:
    """Return seconds as a person says them."""
    if value < 90:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 5400 else f"{value / 3600:.1f} h"


def as_json(cells: Sequence[CellStatus]) -> dict[str, Any]:
    """Return everything that the lines say, and the plan's facts."""
    left = time_left(cells, len(make_slots(1)))
    return {
        "cells": [dataclasses.asdict(cell) for cell in cells],
        "counts": Counter(cell.state for cell in cells),
        "left": None if left is None else dataclasses.asdict(left),
    }


if __name__ == "__main__":
    run_edge(main)
