"""What a person sees while a sweep is under way: the live view of sweep_view.py, or plain lines."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from at_work import AtWork
from pace import Pace
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text
from screen import duration, is_live, open_console, say, spoken
from stray import StrayLines
from sweep_view import (
    SweepView,
    budget_lines,
    curve_lines,
    slot_line,
    view_lines,
)

from llmtrain.spec.bill import Bill, BillConfig, bill_for, total
from llmtrain.spec.errors import InterruptedRunError, LlmtrainError
from llmtrain.spec.expense import (
    ROUNDS_FILE,
    Expense,
    OpenExpense,
    RunExpense,
    bill_config_of,
    cost_lines,
    open_expense,
    run_expense,
)
from llmtrain.spec.record import read_record
from llmtrain.spec.rundir import PASSED_BY, read_state
from llmtrain.spec.words import plural
from llmtrain.sweep.drain import SweepWatcher
from llmtrain.sweep.ledger import CellStatus, flops_left, flops_of, read_sweep
from llmtrain.sweep.process import Job, Outcome

PLAIN_EVERY_S = 60.0  # between looks at all workers where there is no terminal
LOOKS_PER_S = 2
EDGE = 2  # lines of the screen that stay free below the view


class SweepConsole(SweepWatcher):
    """The progress of a sweep: a live view, and a line for every cell that ends."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = open_console() if console is None else console
        self.live: Live | None = None
        self.cells: dict[Path, CellStatus] = {}
        self.runs: dict[Path, RunExpense] = {}
        self.others: dict[Path, OpenExpense] = {}
        self.bill_config: BillConfig | None = None
        self.at_work: dict[Path, AtWork] = {}
        self.folders: dict[str, Path] = {}
        self.begin: float | None = None
        self.pace = Pace()
        self.is_stopping = False
        self.awaited = 0

    def opened(
        self, jobs: Sequence[Job], n_done: int, n_slots: int, folders: Sequence[Path]
    ) -> None:
        """Say how much there is to do, and read what is there already."""
        self.folders = {path.name: path for path in folders}
        self.opened_at, self.n_jobs, self.n_ended, self.n_failed = time.monotonic(), len(jobs), 0, 0
        n_passed = len(folders) - n_done - len(jobs)
        self.console.print(
            f"{plural(len(folders), 'cell')}: {n_done} done before, {len(jobs)} to train "
            f"on {plural(min(n_slots, max(1, len(jobs))), 'worker')}"
            + (f", {n_passed} passed by" if n_passed else "")
        )
        for parent in dict.fromkeys(path.parent for path in folders):
            adaptive = (parent / ROUNDS_FILE).is_file()  # earlier rounds belong to it
            names = [path.name for path in folders if path.parent == parent]
            for cell in read_sweep(parent, None if adaptive else names) if parent.is_dir() else []:
                self._know(parent / cell.run_id, cell)
        titles = (self.cells[self.folders[job.name]].title for job in jobs)
        self.title_width = max(map(len, titles), default=0)
        if self.begin is None:
            self.begin, self.flops_before = time.monotonic(), self._flops_done()
        if jobs and is_live(self.console):
            self.live = Live(
                get_renderable=self._drawn,
                console=self.console,
                refresh_per_second=LOOKS_PER_S,
                transient=True,
                vertical_overflow="crop",
            )
            self.stray = StrayLines(lambda line: self.console.print(line, style="yellow"))
            self.live.start()
        self.said_at = time.monotonic()

    def would_run(self, to_do: Sequence[CellStatus], others: Sequence[CellStatus]) -> None:
        """Print a dry run."""
        for cell in [*to_do, *others]:
            what = "would train" if cell in to_do else cell.state
            size = f"N {cell.facts['n_params']:,}  D {cell.facts['n_tokens']:,}"
            self.console.print(f"{what:<11} {cell.title}  {size}")
        cells, flops = plural(len(to_do) + len(others), "cell"), sum(map(flops_left, to_do))
        self.console.print(
            f"{cells}: {len(to_do)} to train, {flops:.3g} FLOPs; nothing was written"
        )

    def passed_by(self, job: Job, reason: str | None) -> None:
        """Print a line for a cell in quarantine."""
        title = self.cells[self.folders[job.name]].title
        line = f"{title}  PASSED BY: {reason}; retry=failed tries it again"
        self.console.print(line, style="red")

    def waiting(self, n_cells: int) -> None:
        """Say once what is waited for."""
        if n_cells != self.awaited:
            self.console.print(f"waiting for {plural(n_cells, 'cell')} that other processes are at")
        self.awaited = n_cells

    def submitted(self, job_id: str, n_cells: int, n_tasks: int, directory: Path) -> None:
        """Say where the cells went and how to look after them."""
        self.console.print(f"job {job_id}: {plural(n_cells, 'cell')} for {plural(n_tasks, 'task')}")
        self.console.print(f"how it stands: python scripts/status.py runs={directory}")
        self.console.print(f"its logs: {directory / 'slurm'}; to stop it: scancel {job_id}")

    def decided(self, line: str) -> None:
        """Print what an adaptive sweep decided."""
        self.console.print(line)

    def started(self, job: Job) -> None:
        """Show a cell among those at work."""
        path = self.folders[job.name]
        self.at_work[path] = AtWork()
        self._change(path, state="running", reason=None)

    def reported(self, job: Job, progress: dict[str, Any]) -> None:
        """Take over a cell's numbers; say them all now and then where nothing is drawn."""
        path = self.folders[job.name]
        if path not in self.at_work:
            return
        self.at_work[path].take(progress)
        done = (self.at_work[path].share or 0.0) * self.cells[path].facts.get("flops", 0.0)
        self._change(path, flops_done=done)
        if self.live is None and time.monotonic() - self.said_at >= PLAIN_EVERY_S:
            self.said_at = time.monotonic()
            for folder, work in self.at_work.items():
                self.console.print(slot_line(work.slot(self.cells[folder].title)))

    def ended(self, outcome: Outcome) -> None:
        """Print the cell's line."""
        path = self.folders[outcome.job.name]
        self.at_work.pop(path, None)
        self.n_ended += 1
        number = f"[{self.n_ended}/{self.n_jobs}]".rjust(2 * len(str(self.n_jobs)) + 3)
        head = f"{number} {self.cells[path].title:<{self.title_width}}"
        if outcome.result is None:
            self.n_failed += 1
            stopped = outcome.exit_code == InterruptedRunError.exit_code
            self._change(path, state="stopped" if stopped else "failed", reason=outcome.error)
            self._count_open(path)
            self.console.print(f"{head}  FAILED: {outcome.error}", style="red")
            return
        known = read_sweep(path.parent, [path.name])[0]
        self._know(path, known if known.facts else replace(known, facts=self.cells[path].facts))
        result, left = outcome.result, self._left()
        text = f"{head}  N {result['n_params']:>9,}  loss {result['val_loss']:.4f}"
        text += f"  bpb {result['val_bpb']:.4f}"
        if self.live is None and left is not None:
            text += f"  {duration(left)} left"
        self.console.print(text)

    def warned(self, line: str) -> None:
        """Print what the sweep does without."""
        self.console.print(f"warning: {line}", style="yellow")

    def stopping(self) -> None:
        """Say that the workers save."""
        self.is_stopping = True
        self.console.print(f"stopping: saving the state of {plural(len(self.at_work), 'cell')}")

    def closed(self) -> None:
        """Take the view away and say how long it took, and what it cost."""
        if self.live is not None:
            self.stray.give_back()
            self.live.stop()
            self.live = None
        self.at_work.clear()
        if not self.n_jobs:
            return
        seconds = time.monotonic() - self.opened_at
        failed = f", {self.n_failed} failed" if self.n_failed else ""
        self.console.print(f"{plural(self.n_ended, 'cell')} in {seconds:.0f} s{failed}")

    def conclude(self) -> None:
        """Print the curves and the cost of all cells."""
        cells = list(self.cells.values())
        if not cells:
            return
        drawn = curve_lines(cells, self.console.width) if self.console.is_terminal else []
        for line in [*drawn, *map(Text, budget_lines(cells))]:
            self.console.print(spoken(line, self.console))
        runs, others = tuple(self.runs.values()), tuple(self.others.values())
        for said in cost_lines(Expense(runs=runs, savings=(), others=others)):
            say(self.console, said)
        failed = [path for path, cell in self.cells.items() if cell.state in PASSED_BY]
        if failed:
            quarantined = any(read_state(path)[0] == "quarantined" for path in failed)
            again = " with retry=failed" if quarantined else ""
            self.console.print(
                f"next: python scripts/status.py runs={failed[0].parent}  (why cells failed; the "
                f"same command{again} tries them again)"
            )

    @property
    def is_done(self) -> bool:
        """Whether every cell of this call has its record."""
        return bool(self.cells) and all(cell.state == "done" for cell in self.cells.values())

    def view(self) -> SweepView:
        """Return what there is to see now."""
        begin = time.monotonic() if self.begin is None else self.begin
        return SweepView(
            cells=list(self.cells.values()),
            slots=[work.slot(self.cells[p].title) for p, work in list(self.at_work.items())],
            share=self._share(),
            elapsed_s=time.monotonic() - begin,
            left_s=self._left(),
            bill=self._bill(),
            bill_config=self.bill_config,
        )

    def _drawn(self) -> Group:
        height = self.console.height - EDGE
        lines = view_lines(self.view(), width=self.console.width - 1, height=height)
        return Group(*(spoken(line, self.console) for line in lines))

    def _know(self, path: Path, cell: CellStatus) -> None:
        """Take over a cell as its folder has it, and its cost where it is finished."""
        self.cells[path] = cell
        if cell.state != "done":
            self._count_open(path)
        elif path not in self.runs:
            self.others.pop(path, None)  # its record counts that too
            with contextlib.suppress(LlmtrainError):
                record = read_record(path)
                found = None if record is None else run_expense(path, record)
                if found is not None:
                    self.runs[path], self.bill_config = found, found.config

    def _count_open(self, path: Path) -> None:
        """Take over the cost of a cell without a record."""
        if (found := open_expense(path)) is not None:
            self.others[path], self.bill_config = found, found.config

    def _change(self, path: Path, **changes: Any) -> None:
        self.cells[path] = replace(self.cells[path], **changes)

    def _flops_done(self) -> float:
        return sum(
            flops_of(cell) if cell.state == "done" else flops_of(cell) - flops_left(cell)
            for cell in self.cells.values()
            if "flops" in cell.facts
        )

    def _flops(self) -> float:
        """Return the FLOPs of the cells that have not failed."""
        return sum(flops_of(cell) for cell in self.cells.values() if cell.state not in PASSED_BY)

    def _share(self) -> float | None:
        whole = self._flops()
        return min(1.0, self._flops_done() / whole) if whole > 0 else None

    def _left(self) -> float | None:
        """Return the seconds left by the pace since the first step, the workers' start left out."""
        done = self._flops_done()
        if self.begin is None or done <= self.flops_before:
            return None
        return self.pace.left(done, self._flops())

    def _bill(self) -> Bill | None:
        """Return the cost of what has ended, and of what is at work by its time so far."""
        config = self.bill_config
        now = time.monotonic()
        bills = [run.bill for run in self.runs.values()]
        bills += [run.bill for run in self.others.values()]
        for path, work in list(self.at_work.items()):
            config = config or bill_config_of(path)
            if config is not None and "hardware" in work.report:
                bills.append(bill_for(now - work.begin, config, work.report["hardware"]))
        self.bill_config = config
        return total(bills) if bills else None
