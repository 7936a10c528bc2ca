"""Turn text into token shards.

  python scripts/prepare_data.py data=fineweb_edu data.max_bytes=1e9
  python scripts/prepare_data.py data=local 'data.paths=[my/*.jsonl]' data.name=mine

Every key of configs/data/*.yaml can be set. The corpus lies in a folder named by its content's
settings below data.root; running the same command again finds it there.
"""

import interrupts  # first: what it sets up holds while the others are imported

# isort: split
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import key_help
from edge import compose, run_edge
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from screen import ScriptConsole

from llmtrain.corpus.prepare import prepare
from llmtrain.corpus.shards import Manifest, open_corpus
from llmtrain.spec.build import build
from llmtrain.spec.data import DataConfig

BAR_EVERY_S = 0.1
LINE_EVERY_S = 10.0
LEFT_OUT = ("empty", "with_nul", "not_utf8", "exact_duplicates", "near_duplicates")


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareConfig:
    """configs/prepare.yaml."""

    data: DataConfig
    """The corpus to prepare."""


def main(overrides: list[str]) -> None:
    """Prepare the corpus of the composed configuration, verify it, and print what it holds."""
    config = build(PrepareConfig, compose("prepare", overrides)).data
    interrupts.with_cleaning()
    began = time.perf_counter()
    with progress_lines() as progress:
        directory = prepare(config, progress=progress)
    manifest = open_corpus(directory).manifest
    print_summary(manifest, directory, time.perf_counter() - began)


@contextmanager
def progress_lines() -> Iterator[Callable[[str, float], None]]:
    """Yield a progress callback: a bar on a terminal, a line every few seconds elsewhere."""
    if not sys.stderr.isatty():
        yield throttled(say, LINE_EVERY_S)
        return
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(stage: str, share: float) -> None:
            total, completed = (None, 0.0) if math.isnan(share) else (1.0, share)
            bar.update(task, description=stage, total=total, completed=completed)

        yield throttled(show, BAR_EVERY_S)


def say(stage: str, share: float) -> None:
    """Print a stage and how far it is."""
    print(stage if math.isnan(share) else f"{stage}: {share:.0%}", file=sys.stderr)


def throttled(show: Callable[[str, float], None], every_s: float) -> Callable[[str, float], None]:
    """Return `show`, called at most every `every_s` seconds of a stage: documents are many."""
    shown_at: dict[str, float] = {}

    def passed_on(stage: str, share: float) -> None:
        now = time.monotonic()
        if now - shown_at.get(stage, -math.inf) >= every_s:
            shown_at[stage] = now
            show(stage, share)

    return passed_on


def print_summary(manifest: Manifest, directory: Path, seconds: float) -> None:
    """Print counts of both splits, what was left out, the hash and the folder."""
    table = Table(title=f"{manifest.name} ({manifest.tokenizer}, {manifest.vocab_size} ids)")
    table.add_column()
    splits = {"train": manifest.train, "validation": manifest.val}
    for name in splits:
        table.add_column(name, justify="right")
    for label, field in (
        ("documents", "n_documents"),
        ("bytes", "n_bytes"),
        ("tokens", "n_tokens"),
    ):
        table.add_row(label, *(f"{getattr(split, field):,}" for split in splits.values()))
    ScriptConsole().print(table)
    left_out = [f"{manifest.source[reason]} {reason}" for reason in LEFT_OUT]
    print(f"left out   {', '.join(left_out).replace('_', ' ')}")
    print(f"data_id    {manifest.data_id}")
    print(f"folder     {directory}")
    print(f"seconds    {seconds:.1f}")


if __name__ == "__main__":
    if key_help.is_asked_for():
        __doc__ = f"{__doc__}\n{key_help.data_keys()}"
    run_edge(main)
