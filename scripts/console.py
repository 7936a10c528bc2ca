"""What a person sees while a run or a sweep is under way: a live line, or plain ones in a file."""

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from llmtrain.spec.record import RunRecord
from llmtrain.sweep.drain import SweepWatcher
from llmtrain.sweep.ledger import CellStatus, flops_left
from llmtrain.sweep.process import Job, Outcome

SAMPLE_FILE = "sample.txt"
PLAIN_EVERY_S = 10.0  # between lines where there is no terminal


class StepProgress(Protocol):
    """What the training loop reports."""

    @property
    def step(self) -> int:
        """Steps done."""

    @property
    def n_steps(self) -> int:
        """Steps in all."""

    @property
    def loss(self) -> float:
        """Mean training loss since the last report, nats per token."""

    @property
    def lr(self) -> float:
        """Learning rate."""

    @property
    def seq_len(self) -> int:
        """Context length of the stage."""

    @property
    def tokens_per_second(self) -> float:
        """Training speed."""


def bars(console: Console) -> Progress:
    """Return a progress line with a share, a text and the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        refresh_per_second=4,
    )


class RunConsole:
    """The progress of one run."""

    def __init__(self, *, enabled: bool) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.enabled = enabled
        self.bars = bars(self.console) if enabled and self.console.is_terminal else None
        self.last_line = self.begin = time.monotonic()

    def __enter__(self) -> "RunConsole":
        if self.bars is not None:
            self.bars.start()
            self.task = self.bars.add_task("training", total=1.0, text="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bars is not None:
            self.bars.stop()

    def show(self, progress: StepProgress) -> None:
        """Show where the run is."""
        share = progress.step / progress.n_steps
        text = (
            f"loss {progress.loss:.4f}  lr {progress.lr:.2e}  T {progress.seq_len}  "
            f"{progress.tokens_per_second / 1e3:.1f}k tok/s"
        )
        if self.bars is not None:
            self.bars.update(self.task, completed=share, text=text)
        elif self.enabled and time.monotonic() - self.last_line >= PLAIN_EVERY_S:
            self.last_line = time.monotonic()
            left = (self.last_line - self.begin) * (1 - share) / share
            self.console.print(
                f"step {progress.step}/{progress.n_steps}  {text}  {left:.0f} s left"
            )

    def result(self, record: RunRecord, directory: Path) -> None:
        """Print what the run came to."""
        self.console.print(
            f"{record.run_id}: validation loss {record.val_loss:.4f} nats/token, "
            f"{record.val_bpb:.4f} bits/byte; N {record.params['no_input_embedding']:,}, "
            f"D {record.n_tokens:,}, {record.flops[record.flops_convention]:.3g} FLOPs "
            f"({record.flops_convention}), {record.tokens_per_second / 1e3:.1f}k tok/s"
        )
        self.console.print(f"record: {directory / 'record.json'}")
        sample = directory / SAMPLE_FILE
        if sample.is_file():
            text = sample.read_text(encoding="utf-8")
            self.console.print("sample:", text.rstrip(), sep="\n", markup=False)


class SweepConsole(SweepWatcher):
    """The progress of a sweep: a bar by cost, and a line for every cell that ends."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.bars: Progress | None = None

    def opened(self, jobs: Sequence[Job], n_done: int, n_slots: int) -> None:
        """Say how much there is to do."""
        self.cost = {job.name: job.cost for job in jobs}
        self.share = dict.fromkeys(self.cost, 0.0)
        self.begin = time.monotonic()
        self.ended_cells, self.failed, self.awaited = 0, 0, 0
        self.console.print(
            f"{len(jobs) + n_done} cells: {n_done} done before, {len(jobs)} to train "
            f"on {min(n_slots, max(1, len(jobs)))} workers"
        )
        if self.console.is_terminal and jobs:
            self.bars = bars(self.console)
            self.bars.start()
            self.task = self.bars.add_task("sweep", total=sum(self.cost.values()), text="")

    def would_run(self, to_do: Sequence[CellStatus], others: Sequence[CellStatus]) -> None:
        """Print a dry run."""
        for cell in [*to_do, *others]:
            what = "would train" if cell in to_do else cell.state
            size = f"N {cell.facts['n_params']:,}  D {cell.facts['n_tokens']:,}"
            self.console.print(f"{what:<11} {cell.run_id}  {size}", markup=False)
        flops = sum(map(flops_left, to_do))
        self.console.print(
            f"{len(to_do) + len(others)} cells: {len(to_do)} to train, {flops:.3g} FLOPs; "
            "nothing was written"
        )

    def passed_by(self, job: Job, reason: str | None) -> None:
        """Print a line for a cell in quarantine."""
        line = f"{job.name}  PASSED BY: {reason}; retry=failed tries it again"
        self.console.print(line, markup=False)

    def waiting(self, n_cells: int) -> None:
        """Say once what is waited for."""
        if n_cells != self.awaited:
            self.console.print(f"waiting for {n_cells} cells that other processes are at")
        self.awaited = n_cells

    def submitted(self, job_id: str, n_cells: int, n_tasks: int, directory: Path) -> None:
        """Say where the cells went and how to look after them."""
        self.console.print(f"job {job_id}: {n_cells} cells for {n_tasks} tasks", markup=False)
        self.console.print(f"how it stands: python scripts/status.py runs={directory}")
        self.console.print(f"its logs: {directory / 'slurm'}; to stop it: scancel {job_id}")

    def decided(self, line: str) -> None:
        """Print what an adaptive sweep decided."""
        self.console.print(line, markup=False)

    def started(self, job: Job) -> None:
        """Count a cell that was given back or reopened after the sweep was opened."""
        self.cost.setdefault(job.name, job.cost)
        self.share.setdefault(job.name, 0.0)

    def reported(self, job: Job, progress: dict[str, Any]) -> None:
        """Move the bar."""
        self.share[job.name] = progress["share"]
        self._move()

    def ended(self, outcome: Outcome) -> None:
        """Print the cell's line."""
        self.ended_cells += 1
        self.share[outcome.job.name] = 1.0
        head = f"[{self.ended_cells}/{len(self.cost)}] {outcome.job.name}"
        if outcome.result is None:
            self.failed += 1
            self.console.print(f"{head}  FAILED: {outcome.error}", markup=False)
        else:
            result = outcome.result
            self.console.print(
                f"{head}  N {result['n_params']:>9,}  loss {result['val_loss']:.4f}  "
                f"bpb {result['val_bpb']:.4f}{self._left()}",
                markup=False,
            )
        self._move()

    def closed(self) -> None:
        """Take the bar away and say how long it took."""
        if self.bars is not None:
            self.bars.stop()
            self.bars = None
        if self.cost:
            seconds = time.monotonic() - self.begin
            failed = f", {self.failed} failed" if self.failed else ""
            self.console.print(f"{self.ended_cells} cells in {seconds:.0f} s{failed}")

    def _done(self) -> float:
        return sum(self.cost[name] * share for name, share in self.share.items())

    def _left(self) -> str:
        if self.bars is not None:
            return ""
        share = self._done() / sum(self.cost.values())
        return f"  {(time.monotonic() - self.begin) * (1 - share) / share:.0f} s left"

    def _move(self) -> None:
        if self.bars is not None:
            text = f"{self.ended_cells}/{len(self.cost)} cells"
            self.bars.update(self.task, completed=self._done(), text=text)
