"""Print how a sweep stands: which cells are done, running, stopped or failed, and why.

python scripts/status.py runs=runs/demo
"""

from collections import Counter
from pathlib import Path

from edge import key_values, run_edge
from rich.console import Console

from llmtrain.spec.errors import ConfigError
from llmtrain.sweep.ledger import read_sweep


def main(overrides: list[str]) -> None:
    """Read the ledger and print it."""
    given = key_values(overrides, ("runs",))
    if "runs" not in given:
        raise ConfigError("status.py takes one key: runs=runs/NAME")
    cells = read_sweep(Path(given["runs"]))
    console = Console(highlight=False, soft_wrap=True)
    for cell in cells:
        result = cell.reason or ("" if cell.val_loss is None else f"loss {cell.val_loss:.4f}")
        console.print(f"{cell.state:<8} {cell.run_id}  {result}", markup=False)
    counts = Counter(cell.state for cell in cells)
    summary = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    console.print(f"{len(cells)} cells: {summary}")


if __name__ == "__main__":
    run_edge(main)
