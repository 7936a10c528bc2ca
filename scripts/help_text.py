"""Help wrapped to the terminal: sentences between words, commands as a shell takes them."""

import os
import re
import shutil
import sys
import textwrap

ENTRY = re.compile(r"  (?P<head>\S.*?)(?: {2,}(?P<text>\S.*))?")
WORD = re.compile(r"(?:'[^']*'|\S)+")  # of a command; quotes hold it together
LEAST = 30  # columns of a sentence beside what it explains; with fewer it stands below
BELOW = 6


def columns_are_set() -> bool:
    """Return whether COLUMNS holds what is printed to a width, also where no terminal reads it."""
    return os.environ.get("COLUMNS", "").strip("0").isdigit()


def fitted_help(text: str) -> str:
    """Return help in lines that this terminal has room for; unchanged where there is none."""
    if not (sys.stdout.isatty() or columns_are_set()):
        return text
    return wrapped(text, shutil.get_terminal_size().columns)


def wrapped(text: str, width: int) -> str:
    """Return help in lines of at most `width` columns; a word that is wider stays whole.

    Lines without indent are sentences. Those indented by two are what one can type, with what it
    means two or more columns to the right and on the lines below, indented further.
    """
    blocks: list[list[str]] = []
    for line in text.splitlines():
        last = blocks[-1][0] if blocks else ""
        explains = line.startswith("   ") and last.startswith("  ")
        goes_on = bool(line and last) and not line.startswith(" ") and not last.startswith(" ")
        if explains or goes_on:
            blocks[-1].append(line)
        else:
            blocks.append([line])
    return "\n".join(line for block in blocks for line in _block(block, width))


def _block(lines: list[str], width: int) -> list[str]:
    """Return the lines of a paragraph, or of an entry of a list."""
    if max(map(len, lines)) <= width:
        return lines
    match = ENTRY.fullmatch(lines[0])
    if match is None:
        return _folded(" ".join(lines), width)
    first = _command(match["head"], width)
    text = " ".join([match["text"] or "", *map(str.strip, lines[1:])]).strip()
    if not text:
        return first
    column = len(lines[-1]) - len(lines[-1].lstrip()) if len(lines) > 1 else match.start("text")
    if width - column < LEAST:
        sign = "# " if " " in match["head"] else ""  # of a command, for whoever copies it
        return [*first, *_folded(text, width, " " * BELOW + sign)]
    below = _folded(text, width, " " * column)
    if len(first) > 1 or len(first[0]) + 2 > column:
        return [*first, *below]
    return [f"{first[0]:<{column}}{below[0].lstrip()}", *below[1:]]


def _command(head: str, width: int) -> list[str]:
    """Return what one can type; a command that is too wide goes on below, as a shell reads it."""
    words = WORD.findall(head)
    lines = [f"  {words[0]}"]
    for word in words[1:]:
        if len(f"{lines[-1]} {word} \\") > width:
            lines[-1] += " \\"
            lines.append(f"{' ' * BELOW}{word}")
        else:
            lines[-1] += f" {word}"
    return lines


def _folded(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
