"""A sweep as lines: what runs, how far each budget is, its curves, its cost, its failures.

Pure functions of a state that scripts/train.py makes from what its workers report, and
scripts/status.py from the files.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.text import Text
from screen import bar, duration, fitted, thousands
from text_plot import HEIGHT, LOWEST, BudgetCurve, panels

from llmtrain.scaling.wording import count, flops
from llmtrain.spec.bill import Bill, BillConfig
from llmtrain.spec.expense import bill_text, energy_text, money_text
from llmtrain.spec.rundir import PASSED_BY
from llmtrain.spec.words import plural
from llmtrain.sweep.ledger import STATES, CellStatus

STYLES = {"done": "green", "running": "cyan", "failed": "red", "quarantined": "red"}
AT_WORK = ("running", "trained", "evaluated")
SLOT_COLUMNS = {"done": 4, "loss": 7, "tok/s": 6, "MFU": 4, "left": 8}
"""Columns of what a worker is at, and their widths."""
N_FAILURES = 3
"""Failures that the view itself lists; each was named when it happened."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """What one worker is at."""

    title: str
    share: float | None
    loss: float | None
    tokens_per_second: float | None
    mfu: float | None
    left_s: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepView:
    """Everything that is shown of a sweep."""

    cells: Sequence[CellStatus]
    slots: Sequence[Slot]
    share: float | None
    """Of the FLOPs."""
    elapsed_s: float | None
    left_s: float | None
    bill: Bill | None
    """Cost so far."""
    bill_config: BillConfig | None


def view_lines(view: SweepView, *, width: int, height: int) -> list[Text]:
    """Return the view in at most `width` columns and `height` lines; the curves go first."""
    found = [*head_lines(view, width), *slot_lines(view.slots, width)]
    found = found[: max(1, height)]
    failures = failure_lines(view.cells)
    room = height - len(found) - len(failures)
    drawn = curve_lines(view.cells, width)
    if len(drawn) > room:
        drawn = [Text(line) for line in budget_lines(view.cells)]
    found += drawn[: max(0, room)]
    found += failures
    return [fitted(line, width) for line in found[: max(1, height)]]


def head_lines(view: SweepView, width: int) -> list[Text]:
    """Return how far the sweep is, how long yet, and what it has cost."""
    text = counted(view.cells)
    times = []
    if view.elapsed_s is not None:
        times.append(f"{duration(view.elapsed_s)} so far")
    if view.left_s is not None:
        times.append(f"about {duration(view.left_s)} left")
    lines = [Text(text)]
    if view.share is not None:
        head = f"{view.share:4.0%} of the FLOPs"
        tail = ", ".join(times)
        room = max(0, min(40, width - len(head) - len(tail) - 4))
        parts = [head, bar(view.share, room), tail]
        lines.append(Text("  ".join(part for part in parts if part)))
        lines[-1].highlight_regex("━+", "cyan")
    if view.bill is not None and view.bill.device_hours > 0:
        lines.append(Text(cost_line(view.bill, view.bill_config, width)))
    return lines


def cost_line(bill: Bill, config: BillConfig | None, width: int) -> str:
    """Return the cost so far; what it is counted by gives way where the line is narrow."""
    line = f"cost so far: {bill_text(bill, config)}"
    if len(line) <= width:
        return line
    short = f"cost so far: {energy_text(bill)}"
    return short if bill.money is None else f"{short}; {money_text(bill, config)}"


def slot_lines(slots: Sequence[Slot], width: int) -> list[Text]:
    """Return a table of what the workers are at; the name gives way where it is narrow."""
    if not slots:
        return []
    room = max(8, min(max(len(slot.title) for slot in slots), width - 43))
    lines = [Text(_row("at work", room, {name: name for name in SLOT_COLUMNS}), style="bold")]
    for slot in slots:
        name = slot.title if len(slot.title) <= room else slot.title[: room - 1] + "…"
        lines.append(Text(_row(name, room, slot_cells(slot))))
    return lines


def _row(name: str, room: int, cells: Mapping[str, str]) -> str:
    columns = (f"{cells[key]:>{width}}" for key, width in SLOT_COLUMNS.items())
    return f"{name:<{room}}  {'  '.join(columns)}"


def slot_cells(slot: Slot) -> dict[str, str]:
    """Return what a worker is at as text, a dash for what is not known yet."""
    speed = slot.tokens_per_second
    return {
        "done": "–" if slot.share is None else f"{slot.share:.0%}",
        "loss": "–" if slot.loss is None else f"{slot.loss:.4f}",
        "tok/s": "–" if speed is None else thousands(speed),
        "MFU": "–" if slot.mfu is None else f"{slot.mfu:.0%}",
        "left": "–" if slot.left_s is None else duration(slot.left_s),
    }


def slot_line(slot: Slot) -> str:
    """Return what a worker is at as one line that says what each number is."""
    cells = slot_cells(slot)
    return (
        f"at work {slot.title}  {cells['done']} done  loss {cells['loss']}  "
        f"{cells['tok/s']} tok/s  MFU {cells['MFU']}  {cells['left']} left"
    )


def curves_of(cells: Iterable[CellStatus]) -> list[BudgetCurve]:
    """Return a curve per budget, smallest first, of the cells at the most common rate.

    A size is the mean of its seeds; of cells that differ in neither, as those of several
    optimizers, the lowest loss stands, as in the analysis.
    """
    known = [cell for cell in cells if cell.facts.get("budget") and "n_params" in cell.facts]
    rates = Counter(cell.facts.get("lr_multiplier") for cell in known)
    rate = rates.most_common(1)[0][0] if rates else None
    curves = []
    for budget in sorted({cell.facts["budget"] for cell in known}):
        own = [cell for cell in known if cell.facts["budget"] == budget]
        losses: dict[int, dict[object, float]] = {}
        for cell in own:
            if cell.val_loss is not None and cell.facts.get("lr_multiplier") == rate:
                shape_and_seed = tuple(cell.facts.get(k) for k in ("d_model", "n_layers", "seed"))
                by_seed = losses.setdefault(cell.facts["n_params"], {})
                loss = by_seed.get(shape_and_seed, cell.val_loss)
                by_seed[shape_and_seed] = min(loss, cell.val_loss)
        curves.append(
            BudgetCurve(
                budget=budget,
                n_done=sum(cell.state == "done" for cell in own),
                n_cells=len(own),
                points=tuple((float(n), fmean(by.values())) for n, by in sorted(losses.items())),
            )
        )
    return curves


def curve_lines(cells: Sequence[CellStatus], width: int) -> list[Text]:
    """Return the IsoFLOP points so far as panels, the lowest of each budget marked."""
    curves = curves_of(cells)
    sizes = [cell.facts["n_params"] for cell in cells if "n_params" in cell.facts]
    if not any(curve.points for curve in curves):
        return []
    lines = panels(curves, (min(sizes), max(sizes)), width)
    styled = [Text(line, style="bold" if k % HEIGHT == 0 else "") for k, line in enumerate(lines)]
    for line in styled:
        line.highlight_words([LOWEST], "bold green")
    return [Text("loss against parameters (log), so far", style="dim"), *styled]


def budget_lines(cells: Sequence[CellStatus]) -> list[str]:
    """Return how far each budget is, and its lowest loss, as lines that say so."""
    lines = []
    for curve in curves_of(cells):
        line = f"budget {flops(curve.budget)}: {curve.n_done}/{plural(curve.n_cells, 'cell')}"
        if curve.lowest is not None:
            params, loss = curve.lowest
            line += f", lowest loss {loss:.4f} at N {count(params)}"
        lines.append(line)
    return lines


def failure_lines(cells: Sequence[CellStatus]) -> list[Text]:
    """Return the last failures with their reasons, and how many there are."""
    failed = [cell for cell in cells if cell.state in PASSED_BY]
    lines = [Text(f"FAILED {cell.title}: {cell.reason}", style="red") for cell in failed]
    if len(lines) > N_FAILURES:
        more = Text(f"{len(lines) - N_FAILURES + 1} more have failed", style="red")
        return [*lines[: N_FAILURES - 1], more]
    return lines


def counted(cells: Sequence[CellStatus]) -> str:
    """Return how many cells are in each state."""
    counts = Counter(cell.state for cell in cells)
    known = [f"{counts[state]} {state}" for state in STATES if counts[state]]
    return f"{plural(len(cells), 'cell')}: {', '.join(known)}"
