"""What every script shares that prints: widths, bars, durations, and what a terminal can show."""

import textwrap

from help_text import columns_are_set
from rich.console import Console
from rich.text import Text

# For terminals and files whose encoding has no such signs.
PLAIN_SIGNS = str.maketrans("•◆│└─━╸…–—×±αβ", "o*|+-=>.--x+ab")
PIPE_WIDTH = 1000  # a file or a pipe has no width; nothing may be cut or broken


class ScriptConsole(Console):
    """rich's, which leaves the end of a script to edge.guarded."""

    def on_broken_pipe(self) -> None:
        """Raise what rich has caught: nobody reads the output any more."""
        raise BrokenPipeError


def open_console() -> ScriptConsole:
    """Return the console of a script: wide where there is no terminal, without markup."""
    console = ScriptConsole(highlight=False, soft_wrap=True, markup=False)
    if not has_width(console):
        console.width = PIPE_WIDTH
    return console


def has_width(console: Console) -> bool:
    """Return whether lines are held to a width: on a terminal, or where COLUMNS says one."""
    return console.is_terminal or columns_are_set()


def is_live(console: Console) -> bool:
    """Return whether lines can be drawn over: on a terminal that is not a dumb one."""
    return console.is_terminal and not console.is_dumb_terminal


def fitted(line: Text, width: int) -> Text:
    """Return the line cut to `width` columns, with a sign that it was."""
    line = line.copy()
    line.truncate(width, overflow="ellipsis")
    return line


def spoken(line: Text, console: Console) -> Text:
    """Return the line in signs that the console's encoding has."""
    if console.encoding.lower().replace("-", "") in ("utf8", "utf16", "utf32"):
        return line
    plain = Text(line.plain.translate(PLAIN_SIGNS), style=line.style)
    plain.spans = list(line.spans)
    return plain


def say(console: Console, line: str, style: str = "", *, indent: str = "") -> None:
    """Print a sentence: between words on a terminal, on one line elsewhere, where it is searched.

    `indent` stands before all lines but the first. A command is never broken, so that it can be
    copied.
    """
    if has_width(console) and not line.startswith("next:"):
        indent = "  " if line.startswith("- ") else indent
        line = textwrap.fill(
            line,
            max(20, console.width),
            subsequent_indent=indent,
            break_long_words=False,  # paths
            break_on_hyphens=False,  # run ids
        )
    console.print(spoken(Text(line, style=style), console))


def bar(share: float, width: int) -> str:
    """Return a bar of `width` columns; nothing below four, which would show nothing."""
    if width < 4:
        return ""
    full = min(width, max(0, round(share * width)))
    return "━" * full + "─" * (width - full)


def duration(seconds: float) -> str:
    """Return seconds as a person says them."""
    if 0 < seconds < 1:
        return "<1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def thousands(value: float) -> str:
    """Return a rate in at most six columns: 812, 61.2k, 1.33M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{value / size:#.3g}{unit}".replace(".k", "k").replace(".M", "M")
    return f"{value:.0f}"
