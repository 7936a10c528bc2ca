"""What a terminal, a dumb one and a pipe get of a real sweep, at 80 and at 140 columns."""

import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl

import pytest

CURSOR = re.compile(r"\x1b\[(\d*)([A-Za-z])")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
LIMIT_S = 240.0  # of a machine ten times slower, and crowded
LONG = ["budget.flops=1e12", "seed=0,1", "tracking.points=2000"]


def open_terminal(columns, rows):
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    return ours, theirs


def start(root, folder, arguments, columns=80, rows=24, **environment):
    """Start train.py in a terminal; return the process and our end."""
    ours, theirs = open_terminal(columns, rows)
    plain = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, str(root / "scripts/train.py"), *arguments],
        cwd=folder,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=plain | {"TERM": "xterm-256color"} | environment,
        start_new_session=True,
    )
    os.close(theirs)
    return process, ours


def read(ours, until=lambda _seen: False):
    """Return what was written until `until` says so of it or the other end is closed."""
    seen, deadline = b"", time.monotonic() + LIMIT_S
    while time.monotonic() < deadline and not until(seen):
        if select.select([ours], [], [], 0.2)[0]:
            try:
                seen += os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
    return seen.decode()


class Screen:
    """A terminal as far as the view uses one: text, colours, cursor up, erase line."""

    def __init__(self, columns):
        self.columns, self.lines, self.row, self.column = columns, [""], 0, 0
        self.n_wrapped = 0

    def feed(self, text):
        text = COLOUR.sub("", re.sub(r"\x1b\[\?\d+[hl]", "", text))
        while text:
            if found := CURSOR.match(text):
                count = int(found[1] or 1)
                if found[2] == "A":
                    self.row = max(0, self.row - count)
                elif found[2] == "K":
                    self.lines[self.row] = ""
                else:
                    raise AssertionError(found[0])
                text = text[found.end() :]
                continue
            self.put(text[0])
            text = text[1:]

    def put(self, letter):
        assert letter >= " " or letter in "\r\n\x07", repr(letter)
        if letter == "\r":
            self.column = 0
        elif letter == "\n":
            self.row, self.column = self.row + 1, 0
            self.lines += [""] * (self.row + 1 - len(self.lines))
        elif letter >= " ":
            if self.column == self.columns:
                self.n_wrapped += 1
                self.put("\n")
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + letter + line[self.column + 1 :]
            self.column += 1


@pytest.mark.parametrize("columns", [80, 140])
def test_the_live_view_draws_over_itself_and_leaves_a_clean_screen(
    tiny_overrides, tmp_path, root, cli, columns
):
    product = ["-m", *tiny_overrides, "model.d_model=8,16", "recipe.lr_multiplier=1,1e30"]
    arguments = [o for o in product if not o.startswith(("model.d_model=16", "budget.flops"))]
    process, ours = start(root, tmp_path, [*arguments, "budget.flops=2e9"], columns)
    raw = read(ours)
    assert process.wait(timeout=LIMIT_S) == 1, raw
    screen = Screen(columns)
    screen.feed(raw)
    text = "\n".join(screen.lines)
    assert "at work" in raw  # the view was there
    assert "at work" not in text  # and went
    assert raw.count("\x1b[?25l") == raw.count("\x1b[?25h") >= 1  # the cursor is back
    assert text.count("FAILED: step") == 2
    assert "2 failed" in text
    assert "budget 2e9: 2/4 cells, lowest loss" in text
    assert "cost of 2 finished cells: estimated" in text
    others = r"(estimated \S+ \S+, \S+ \S+ CO2e in 2 cells without a record \(2 failed\))"
    (line,) = re.findall(f"and {others}", " ".join(text.split()))
    status = cli("status.py", "runs=runs/single").stdout
    assert re.findall(f"^and {others}$", status, re.M) == [line]  # the files say the same
    assert "next: python scripts/status.py runs=runs/single" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("while_they", ["start", "train"])
def test_ctrl_c_saves_and_gives_the_terminal_back(tiny_overrides, tmp_path, root, while_they):
    def both_start(seen):
        return b"-s0-" in seen and b"-s1-" in seen

    def both_train(_seen):
        return sum(path.stat().st_size > 0 for path in runs.glob("*/metrics.jsonl")) == 2

    arguments = [o for o in tiny_overrides if not o.startswith("budget.flops")]
    runs = tmp_path / "runs/single"
    process, ours = start(root, tmp_path, ["-m", *arguments, *LONG])
    raw = read(ours, until=both_start)
    if while_they == "train":
        raw += read(ours, until=both_train)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal sends to all of them
    raw += read(ours)
    assert process.wait(timeout=LIMIT_S) == 75, raw
    screen = Screen(80)
    screen.feed(raw)
    text = "\n".join(screen.lines)
    assert "stopping: saving the state of 2 cells" in text
    assert while_they == "start" or len(list(runs.glob("*/checkpoints/step-*"))) == 2
    assert "run the same command to go on" in text
    assert "at work" not in text
    assert raw.count("\x1b[?25l") == raw.count("\x1b[?25h")
    assert "Traceback" not in text


@pytest.mark.parametrize("kind", ["dumb", "no colour"])
def test_a_dumb_terminal_gets_plain_lines_and_no_colour_none(tiny_overrides, tmp_path, root, kind):
    environment = {"TERM": "dumb"} if kind == "dumb" else {"NO_COLOR": "1"}
    arguments = ["-m", *tiny_overrides, "recipe.lr_multiplier=1,1e30"]
    process, ours = start(root, tmp_path, arguments, **environment)
    raw = read(ours)
    assert process.wait(timeout=LIMIT_S) == 1, raw
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", raw)  # no colour
    if kind == "dumb":
        assert "\x1b" not in raw
        assert "FAILED: step" in raw
        assert re.search(r"\[\d/2\] C1e9\S+  recipe.lr_multiplier=1 +N +\S+  loss \d", raw)


def test_one_run_has_one_line_and_its_result(tiny_overrides, tmp_path, root):
    arguments = [o for o in tiny_overrides if not o.startswith("budget.flops")]
    process, ours = start(root, tmp_path, [*arguments, "budget.flops=8e9"])
    raw = read(ours)
    assert process.wait(timeout=LIMIT_S) == 0, raw
    screen = Screen(80)
    screen.feed(raw)
    assert re.search(r"% .*loss \d\.\d{4}  lr \d\.\d\de-\d\d  T 32  \S+ tok/s", raw)
    assert screen.n_wrapped == 0 or "tok/s" not in screen.lines[0]
    assert "validation loss" in "\n".join(screen.lines)
    assert "cost: estimated" in "\n".join(screen.lines)


def test_a_pipe_gets_lines_to_search(cli, tiny_overrides):
    done = cli("train.py", "-m", *tiny_overrides, "model.d_model=8,16")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert re.search(r"^\[1/2\] C1e9-w\d+d1\S* +N +\S+  loss \d\.\d{4}  bpb", done.stdout, re.M)
    assert re.search(r"^budget 1e9: 2/2 cells, lowest loss \d\.\d{4} at N", done.stdout, re.M)
    assert re.search(r"^cost of 2 finished cells: estimated .* no price set", done.stdout, re.M)
