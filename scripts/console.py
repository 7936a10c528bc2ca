"""What a person sees while one run is under way: a live line, or plain ones in a file."""

import time
from pathlib import Path
from types import TracebackType
from typing import Protocol

from pace import Pace
from rich.live import Live
from rich.text import Text
from screen import bar, duration, fitted, is_live, open_console, say, spoken, thousands

from llmtrain.spec.expense import bill_text, run_expense
from llmtrain.spec.record import RunRecord

SAMPLE_FILE = "sample.txt"
PLAIN_EVERY_S = 10.0  # between lines where there is no terminal
LOOKS_PER_S = 4


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

    @property
    def mfu(self) -> float | None:
        """Share of the device's peak; None where no peak is known."""


def run_text(progress: StepProgress, left_s: float | None) -> str:
    """Return where a run is, each number beside its name."""
    text = (
        f"loss {progress.loss:.4f}  lr {progress.lr:.2e}  T {progress.seq_len}  "
        f"{thousands(progress.tokens_per_second)} tok/s"
    )
    if progress.mfu is not None:
        text += f"  MFU {progress.mfu:.0%}"
    return text if left_s is None else f"{text}  {duration(left_s)} left"


def run_line(progress: StepProgress, left_s: float | None, width: int) -> str:
    """Return where a run is as one line of at most `width` columns, with a bar where it fits."""
    share = progress.step / progress.n_steps
    text = run_text(progress, left_s)
    parts = [f"{share:4.0%}", bar(share, min(30, width - len(text) - 8)), text]
    return fitted(Text("  ".join(part for part in parts if part)), width).plain


class RunConsole:
    """The progress of one run."""

    def __init__(self, *, enabled: bool) -> None:
        self.console = open_console()
        self.enabled = enabled
        self.live = (
            Live(console=self.console, auto_refresh=False, transient=True)
            if enabled and is_live(self.console)
            else None
        )
        self.pace = Pace()
        self.drawn_at = 0.0
        self.said_at = time.monotonic()

    def __enter__(self) -> "RunConsole":
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def show(self, progress: StepProgress) -> None:
        """Show where the run is."""
        left = self.pace.left(progress.step / progress.n_steps)
        now = time.monotonic()
        if self.live is not None and now - self.drawn_at >= 1 / LOOKS_PER_S:
            self.drawn_at = now
            line = Text(run_line(progress, left, self.console.width))
            self.live.update(spoken(line, self.console), refresh=True)
        elif self.live is None and self.enabled and now - self.said_at >= PLAIN_EVERY_S:
            self.said_at = now
            self.console.print(
                f"step {progress.step}/{progress.n_steps}  {run_text(progress, left)}"
            )

    def result(self, record: RunRecord, directory: Path, *, done_before: bool) -> None:
        """Print what the run came to, and whether it was trained by an earlier call."""
        if done_before:
            self.console.print("done before; nothing was trained now")
        self.console.print(
            f"{record.run_id}: validation loss {record.val_loss:.4f} nats/token, "
            f"{record.val_bpb:.4f} bits/byte; N {record.params['no_input_embedding']:,}, "
            f"D {record.n_tokens:,}, {record.flops[record.flops_convention]:.3g} FLOPs "
            f"({record.flops_convention}), {record.tokens_per_second / 1e3:.1f}k tok/s"
        )
        expense = run_expense(directory, record)
        if expense is not None:
            say(self.console, f"cost: {bill_text(expense.bill, expense.config)}")
        self.console.print(f"record: {directory / 'record.json'}")
        sample = directory / SAMPLE_FILE
        if sample.is_file():
            text = sample.read_text(encoding="utf-8")
            self.console.print("sample:", text.rstrip(), sep="\n")
