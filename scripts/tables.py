"""Tables that fit a terminal: whole columns are left out, and no number is broken."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table
from screen import has_width

GAP = 2  # between columns
FOLDED = 24  # columns that a name keeps where it is broken between words


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A column of a table as text."""

    title: str
    texts: Sequence[str]
    justify: Literal["left", "right"] = "right"
    folds: bool = False
    """Whether its texts may be broken between words."""

    @property
    def width(self) -> int:
        """Width of the title and the texts as they are."""
        return max(map(len, (self.title, *self.texts)))

    @property
    def least(self) -> int:
        """Width that it cannot do without."""
        return min(self.width, FOLDED) if self.folds else self.width


def columns_of(
    titles: Sequence[str], rows: Sequence[Sequence[str]], *, n_left: int = 0
) -> list[Column]:
    """Return the columns of `rows`, the first `n_left` flush left; a first one of names folds."""
    return [
        Column(
            title=title,
            texts=texts,
            justify="left" if i < n_left else "right",
            folds=i == 0 < n_left,
        )
        for i, (title, *texts) in enumerate(zip(titles, *rows, strict=True))
    ]


def whole_width(columns: Sequence[Column]) -> int:
    """Return the width of the columns side by side with nothing broken."""
    return sum(column.width for column in columns) + GAP * (len(columns) - 1)


def fitting(columns: Sequence[Column], width: float, give_way: Sequence[str]) -> list[Column]:
    """Return the columns that stand side by side in `width`; those of `give_way` go in its order.

    What cannot be left out stays, also where it is too wide.
    """
    left = list(columns)
    for title in give_way:
        if sum(column.least for column in left) + GAP * (len(left) - 1) > width:
            left = [column for column in left if column.title != title]
    return left


def print_columns(
    console: Console, columns: Sequence[Column], give_way: Sequence[str] = ()
) -> list[Column]:
    """Print columns side by side, and return those that had no room; a file has room for all."""
    shown = fitting(columns, console.width if has_width(console) else math.inf, give_way)
    table = Table(box=None, pad_edge=False)
    for column in shown:
        table.add_column(column.title, justify=column.justify, no_wrap=not column.folds)
    for row in zip(*(column.texts for column in shown), strict=True):
        table.add_row(*row)
    if shown:
        console.print(table)
    return [column for column in columns if column not in shown]
