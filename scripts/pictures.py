"""Make the README's pictures: the demo's curves, its report, and the terminal while it trains.

  python scripts/pictures.py
  python scripts/pictures.py what=figures
  python scripts/pictures.py what=terminal columns=100

Keys:
  what=all          figures (from docs/results/demo/runs.csv), terminal (trains three small budgets
                    of the demo until the view says something, a minute or two), or all
  out=docs/pictures folder of the pictures
  columns=100       width of the terminal
"""

import contextlib
import io
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from edge import CONFIG_DIR, compose, key_values, run_edge
from ending import fit_source
from rich.console import Console
from rich.text import Text
from sweep_console import SweepConsole
from sweep_view import view_lines

from llmtrain.scaling.config import AnalyzeConfig
from llmtrain.scaling.plot.figures import draw_figures
from llmtrain.scaling.plot.row import draw_row
from llmtrain.scaling.verdict import verdict
from llmtrain.spec.build import build
from llmtrain.spec.errors import ConfigError, InterruptedRunError
from llmtrain.sweep.process import Job

ROOT = CONFIG_DIR.parent
DEMO = ROOT / "docs/results/demo/runs.csv"
COMMAND = ("sweep=demo", "sweep.budgets=[1.5e10,3e10,6e10]", "sweep.seeds=[0]")
ROW = ("optimum", "surface")
MOMENT = 0.7
"""Share of the FLOPs at which the terminal is drawn."""

# Rich's own format loads a font from another site; this one takes the reader's.
SVG = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: system-ui, sans-serif; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}<g class="{unique_id}-matrix" xml:space="preserve">{matrix}</g></g>
</svg>
"""


class Photographer(SweepConsole):
    """A sweep's console that prints nothing and keeps the view of one moment."""

    def __init__(self, columns: int) -> None:
        super().__init__(Console(file=io.StringIO(), width=columns, force_terminal=False))
        self.columns = columns
        self.picture: list[Text] = []

    def reported(self, job: Job, progress: dict[str, Any]) -> None:
        """Keep the view once the sweep is far enough and both workers have a speed."""
        super().reported(job, progress)
        view = self.view()
        known = all(slot.left_s is not None for slot in view.slots)
        if not self.picture and known and (view.share or 0.0) >= MOMENT:
            self.picture = view_lines(view, width=self.columns, height=40)
            raise KeyboardInterrupt  # as Ctrl-C: nothing after this moment is needed


def draw_terminal(out: Path, columns: int) -> Path:
    """Train small budgets of the demo and draw the view of a moment."""
    from train import run  # noqa: PLC0415 - Hydra's decorator reads sys.argv when it is called

    photographer = Photographer(columns)
    arguments = sys.argv
    with tempfile.TemporaryDirectory() as folder:
        rest = (f"runs_root={folder}", "tracking.wandb=disabled", "evaluation.sample_tokens=0")
        sys.argv = ["train.py", *COMMAND, *rest]
        try:
            with contextlib.suppress(InterruptedRunError):
                run(photographer)
        finally:
            sys.argv = arguments
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True)
    for line in photographer.picture:
        console.print(line)
    path = out / "terminal.svg"
    title = f"python scripts/train.py {shlex.join(COMMAND)}"
    console.save_svg(str(path), title=title, code_format=SVG, unique_id="view")
    return path


def draw_analysis(out: Path) -> list[Path]:
    """Draw the IsoFLOP curves of the demo, and its verdict over a row of the report's figures."""
    raw = compose("analyze", ["publish=disabled"]) | {"runs": str(DEMO)}
    (group,) = fit_source(build(AnalyzeConfig, raw), DEMO).groups
    with tempfile.TemporaryDirectory() as folder:
        drawn = {figure.name: figure.png for figure in draw_figures(group, Path(folder), "")}
        isoflop = Path(shutil.copyfile(drawn["isoflop"], out / "isoflop.png"))
        report = out / "report.png"
        draw_row([drawn[name] for name in ROW if name in drawn], verdict(group), report)
    return [isoflop, report]


def main(overrides: list[str]) -> None:
    """Draw what is asked for and say where it is."""
    given = {"what": "all", "out": str(ROOT / "docs/pictures"), "columns": "100"}
    given |= key_values(overrides, tuple(given))
    if given["what"] not in ("all", "figures", "terminal"):
        raise ConfigError(f"what={given['what']} is not one of all, figures, terminal")
    if not given["columns"].isdecimal():
        raise ConfigError(f"columns={given['columns']} must be a width, as in columns=100")
    out = Path(given["out"])
    out.mkdir(parents=True, exist_ok=True)
    paths = [] if given["what"] == "terminal" else draw_analysis(out)
    if given["what"] != "figures":
        paths.append(draw_terminal(out, int(given["columns"])))
    for path in paths:
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    run_edge(main)
