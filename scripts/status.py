"""Print how a sweep stands: cells, curves, cost, failures and why, how long yet.

  python scripts/status.py runs=runs/demo
  python scripts/status.py runs=runs/demo watch=2
  python scripts/status.py runs=runs/demo bill.region=FRA bill.price_per_hour=2.5
  python scripts/status.py runs=runs/demo json=true

Keys:
  runs=runs/NAME    folder of the sweep (required)
  watch=SECONDS     look again until nothing is left to do
  json=true         one JSON object per look, for programs
  bill.KEY=VALUE    count energy, carbon and money otherwise than the runs' own configuration:
                    region, grams_per_kwh, pue, device_watts, price_per_hour, currency

A terminal gets the view of scripts/train.py and a table of all cells, anything else plain lines.
"""

import dataclasses
import functools
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge import key_values, run_edge
from next_step import analyze_next
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text
from screen import duration, is_live, open_console, say, spoken
from sweep_view import (
    AT_WORK,
    STYLES,
    Slot,
    SweepView,
    budget_lines,
    counted,
    curve_lines,
    head_lines,
    slot_line,
    slot_lines,
)

from llmtrain.spec.bill import BillChanges
from llmtrain.spec.build import build
from llmtrain.spec.errors import ConfigError, MismatchError
from llmtrain.spec.expense import Expense, cost_lines, expense_of
from llmtrain.spec.record import RunRecord, read_record
from llmtrain.spec.rundir import PASSED_BY
from llmtrain.spec.words import plural
from llmtrain.sweep.ledger import (
    PLAN_FILE,
    CellStatus,
    TimeLeft,
    flops_left,
    flops_of,
    read_sweep,
    time_left,
)
from llmtrain.sweep.pool import make_slots

BILL_KEYS = tuple(f"bill.{field.name}" for field in dataclasses.fields(BillChanges))


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What one look at the files found."""

    directory: Path
    cells: Sequence[CellStatus]
    expense: Expense | None
    left: TimeLeft | None

    def view(self) -> SweepView:
        """Return it as the live view of scripts/train.py has it."""
        counted_in = [cell for cell in self.cells if cell.state not in PASSED_BY]
        known = all("flops" in cell.facts for cell in counted_in)
        flops = sum(map(flops_of, counted_in)) if known else 0.0
        left = sum(flops_left(cell) for cell in counted_in if known and cell.state != "done")
        expense = self.expense
        return SweepView(
            cells=self.cells,
            slots=[slot_of(cell) for cell in self.cells if cell.state in AT_WORK],
            share=1.0 - left / flops if flops > 0 else None,
            elapsed_s=None,
            left_s=None if self.left is None else self.left.seconds,
            bill=None if expense is None else expense.whole,
            bill_config=None if expense is None else expense.config,
        )


def main(overrides: list[str]) -> None:
    """Read the ledger and print it, once or until nothing is left to do."""
    known = ("runs", "watch", "json", *BILL_KEYS)
    given = {"watch": "", "json": "false"} | key_values(overrides, known)
    if "runs" not in given:
        raise ConfigError("runs= is missing; name a sweep's folder, as in runs=runs/demo")
    if given["json"] not in ("true", "false"):
        raise ConfigError(f"json={given['json']} must be true or false")
    every_s = seconds(given["watch"])
    own = {field.name: given.get(f"bill.{field.name}") for field in dataclasses.fields(BillChanges)}
    look = functools.partial(look_at, Path(given["runs"]), build(BillChanges, own, "bill"))
    console = open_console()
    if given["json"] == "true":
        watch(look, every_s, lambda found: print(json.dumps(as_json(found)), flush=True))
    elif not is_live(console):
        watch(look, every_s, lambda found: print_lines(console, lines(found)))
    elif every_s is None:
        console.print(board(found := look(), console))
        print_lines(console, next_step(found))
    else:
        with Live(board(look(), console), console=console, auto_refresh=False) as live:
            found = watch(
                look, every_s, lambda found: live.update(board(found, console), refresh=True)
            )
        print_lines(console, next_step(found))


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


def look_at(directory: Path, changes: BillChanges) -> Look:
    """Read a sweep's folder. Raises ConfigError where there is none."""
    cells = read_sweep(directory)
    if not cells and not (directory / PLAN_FILE).is_file():
        raise ConfigError(f"runs={directory} holds no cells; name a sweep's folder under runs/")
    records = [_record(directory / cell.run_id) for cell in cells if cell.state == "done"]
    found = [record for record in records if record is not None]
    return Look(
        directory=directory,
        cells=cells,
        expense=expense_of(directory, found, changes),
        left=time_left(cells, len(make_slots(1))),
    )


@functools.cache  # a record never changes, and watch= looks again and again
def _record(directory: Path) -> RunRecord | None:
    try:
        return read_record(directory)
    except MismatchError:  # read_sweep says so
        return None


def watch(look: Callable[[], Look], every_s: float | None, show: Callable[[Look], None]) -> Look:
    """Show the cells once, or every `every_s` seconds until all are done or have failed.

    Returns the last look.
    """
    while True:
        found = look()
        show(found)
        if every_s is None or all(cell.state in ("done", *PASSED_BY) for cell in found.cells):
            return found
        time.sleep(every_s)


def print_lines(console: Console, found: Sequence[str]) -> None:
    """Print plain lines, at once."""
    for line in found:
        say(console, line)
    console.file.flush()


def lines(look: Look) -> list[str]:
    """Return one plain line per cell, one per worker and budget, then the summary."""
    cells, view = look.cells, look.view()
    width = max((len(cell.state) for cell in cells), default=0)
    return [
        *(f"{cell.state:<{width}} {cell.title}  {outcome(cell)}".rstrip() for cell in cells),
        *map(slot_line, view.slots),
        *budget_lines(cells),
        counted(cells),
        *notes(look),
        *next_step(look),
    ]


def board(look: Look, console: Console) -> RenderableType:
    """Return the view and all cells as a table under it, where a low screen may cut it."""
    width, view = console.width - 1, look.view()
    top = [*head_lines(view, width), *map(Text, notes(look, in_full=False))]
    top += [*slot_lines(view.slots, width), *curve_lines(look.cells, width)]
    return Group(*(spoken(line, console) for line in top), table(look.cells))


def table(cells: Sequence[CellStatus]) -> Table:
    """Return a row for each cell."""
    shown = Table(box=None, pad_edge=False)
    for name in ("cell", "state"):
        shown.add_column(name, no_wrap=True)
    for name in ("N", "D", "trained"):
        shown.add_column(name, justify="right")
    shown.add_column("loss, or why not")
    for cell in cells:
        facts, share = cell.facts, trained(cell)
        shown.add_row(
            cell.title,
            Text(cell.state, style=STYLES.get(cell.state, "")),
            f"{facts['n_params']:,}" if "n_params" in facts else "?",
            f"{facts['n_tokens']:,}" if "n_tokens" in facts else "?",
            "?" if share is None else f"{share:.0%}",
            Text(outcome(cell)),
        )
    return shown


def outcome(cell: CellStatus) -> str:
    """Return what a cell has come to."""
    return cell.reason or ("" if cell.val_loss is None else f"loss {cell.val_loss:.4f}")


def trained(cell: CellStatus) -> float | None:
    """Return the share of a cell's FLOPs that is done; None where the plan does not know it."""
    if cell.state == "done":
        return 1.0
    return cell.flops_done / cell.facts["flops"] if "flops" in cell.facts else None


def slot_of(cell: CellStatus) -> Slot:
    """Return what is shown of a cell that some process is at."""
    row = cell.latest
    return Slot(
        title=cell.title,
        share=trained(cell),
        loss=row.get("train/loss"),
        tokens_per_second=row.get("train/tokens_per_second"),
        mfu=row.get("train/mfu"),
        left_s=_left_of(cell),
    )


def _left_of(cell: CellStatus) -> float | None:
    """Return the tokens that a cell still has to train over its speed."""
    speed, whole = cell.latest.get("train/tokens_per_second"), cell.facts.get("n_tokens")
    if not speed or whole is None:
        return None
    return max(0.0, float(whole) - cell.latest["tokens"]) / speed


def notes(look: Look, *, in_full: bool = True) -> list[str]:
    """Return the time left and what it rests on, the cost, and what to do next."""
    found = []
    left = look.left
    if left is not None:
        found.append(
            f"about {duration(left.seconds)} left: {left.flops_left:.3g} FLOPs x "
            f"{left.seconds_per_flop:.3g} s per FLOP (mean of "
            f"{plural(left.n_finished, 'finished cell')}) / "
            f"{f'{left.n_slots} at work' if left.at_work else plural(left.n_slots, 'slot')}"
        )
    if look.expense is not None and in_full:
        found += cost_lines(look.expense)
    if look.expense is not None:
        found += [saving.text for saving in look.expense.savings]
    if any(cell.state == "quarantined" for cell in look.cells):
        found.append(
            "quarantined cells failed twice in the same way: retry=failed tries them again"
        )
    return found


def next_step(look: Look) -> list[str]:
    """Return the command that analyses a sweep, once all its cells are done; of one run nothing."""
    finished = all(cell.state == "done" for cell in look.cells)
    return [analyze_next(look.directory)] if finished and len(look.cells) > 1 else []


def as_json(look: Look) -> dict[str, Any]:
    """Return everything that the lines say, and the plan's facts."""
    expense = look.expense
    return {
        "cells": [dataclasses.asdict(cell) for cell in look.cells],
        "counts": Counter(cell.state for cell in look.cells),
        "left": None if look.left is None else dataclasses.asdict(look.left),
        "cost": None if expense is None else expense.facts(),
    }


if __name__ == "__main__":
    run_edge(main)
