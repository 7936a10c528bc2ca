"""The cost of a sweep's runs as a table of the report."""

from collections.abc import Sequence

from llmtrain.scaling.wording import Table, flops
from llmtrain.spec.bill import total
from llmtrain.spec.expense import (
    Expense,
    RunExpense,
    amount_text,
    carbon_text,
    others_text,
    work_text,
)


def expense_table(expense: Expense | None) -> Table | None:
    """Return device hours, energy, carbon and money per budget and in all; None without records."""
    if expense is None:
        return None
    budgets = sorted({run.record.flops_budget or 0.0 for run in expense.runs})
    rows = [
        _row(
            flops(budget) if budget else "by tokens",
            [run for run in expense.runs if (run.record.flops_budget or 0.0) == budget],
        )
        for budget in budgets
    ]
    rows.append(_row("all", expense.runs))
    config = expense.config
    counted = (
        f"Carbon: {config.grid:g} g CO2e per kWh ({config.region}), PUE {config.pue:g}. "
        if config is not None
        else "The runs are not all counted by the same grid, PUE and price. "
    )
    notes = [
        counted,
        "Of finished runs; per token and per run before PUE. Each run's joules stand in its "
        "record and in runs.csv. ",
        f"Besides {others_text(expense.others, 'run')}. " if expense.others else "",
        *(f"{saving.text[0].upper()}{saving.text[1:]}. " for saving in expense.savings),
    ]
    return Table(
        title="What the runs cost",
        header=(
            "FLOPs", "runs", "device hours", "energy", "CO2e", "money", "kJ per run",
            "J per token", "source",
        ),
        rows=tuple(rows),
        note="".join(notes).strip(),
    )  # fmt: skip


def _row(name: str, runs: Sequence[RunExpense]) -> tuple[str, ...]:
    bill = total(run.bill for run in runs)
    currencies = sorted({run.config.currency for run in runs})
    known = [run.joules for run in runs if run.joules is not None]
    whole = len(known) == len(runs)
    mark = "" if bill.mark == "measured" else f"{bill.mark} "
    return (
        name,
        str(len(runs)),
        f"{bill.device_hours:.3g}",
        "–" if bill.kwh is None else f"{mark}{work_text(bill.kwh)}",
        "–" if bill.co2e_kg is None else f"{mark}{carbon_text(bill.co2e_kg)}",
        "–" if bill.money is None else f"{amount_text(bill.money)} {'/'.join(currencies)}",
        f"{mark}{sum(known) / len(runs) / 1e3:.3g}" if whole else "–",
        f"{mark}{sum(known) / sum(run.tokens for run in runs):.3g}" if whole else "–",
        ", ".join(bill.sources),
    )
