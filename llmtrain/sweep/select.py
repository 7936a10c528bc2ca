"""The cells of a sweep that one call is about: by name, by pattern, by budget."""

import fnmatch
import re
from collections.abc import Sequence

from llmtrain.spec.errors import ConfigError
from llmtrain.spec.rundir import run_directory
from llmtrain.sweep.grid import Cell
from llmtrain.sweep.ledger import is_done

REGEX = "re:"


def select(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """Return the cells that at least one item of `only` names; all of them where it is empty.

    Raises ConfigError for an item that names none.
    """
    if not only:
        return list(cells)
    chosen: set[str] = set()
    for item in only:
        found = {cell.run_id for cell in cells if _names(item, cell)}
        if not found and cells:
            raise ConfigError(
                f"only={item} names none of the {len(cells)} cells; write a budget "
                f"({_budgets(cells)}), or a run id such as {cells[0].run_id}, with * for any text "
                "or as a regular expression re:..."
            )
        chosen |= found
    return [cell for cell in cells if cell.run_id in chosen]


def with_trunks(chosen: Sequence[Cell], cells: Sequence[Cell]) -> list[Cell]:
    """Return the chosen cells and the trunks that they start from, as far as those are not done."""
    named = {cell.run_id for cell in chosen}
    needed = {cell.config.checkpoint.branch_from for cell in chosen} - named
    return [
        cell
        for cell in cells
        if cell.run_id in named
        or (cell.run_id in needed and not is_done(run_directory(cell.config)))
    ]


def _budgets(cells: Sequence[Cell]) -> str:
    amounts = {cell.config.budget.flops or cell.config.budget.n_tokens or 0.0 for cell in cells}
    return ", ".join(f"{amount:g}" for amount in sorted(amounts))


def _names(item: str, cell: Cell) -> bool:
    if item.startswith(REGEX):
        try:
            return re.search(item.removeprefix(REGEX), cell.run_id) is not None
        except re.error as error:
            raise ConfigError(f"only={item} is no regular expression: {error}") from error
    try:
        amount = float(item)
    except ValueError:
        return fnmatch.fnmatchcase(cell.run_id, item)
    return amount in (cell.config.budget.flops, cell.config.budget.n_tokens)
