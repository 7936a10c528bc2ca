"""What the runs of a folder have cost, and what a shorter way to the same cells saved."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from llmtrain.spec.bill import (
    JOULES_PER_KWH,
    Bill,
    BillChanges,
    BillConfig,
    bill_of,
    own_share,
    total,
)
from llmtrain.spec.build import build
from llmtrain.spec.errors import ConfigError
from llmtrain.spec.jsonfile import read_json
from llmtrain.spec.record import RECORD_FILE, RunRecord
from llmtrain.spec.rundir import STATE_FILE, read_spent, standing
from llmtrain.spec.words import plural

CONFIG_FILE = "config.json"
ROUNDS_FILE = "rounds.json"
NO_CHANGES = BillChanges()


@dataclass(frozen=True, kw_only=True, slots=True)
class RunExpense:
    """One finished run's."""

    record: RunRecord
    config: BillConfig
    bill: Bill

    @property
    def joules(self) -> float | None:
        """Joules of the devices, before PUE."""
        kwh = self.bill.kwh
        return None if kwh is None else kwh / self.config.pue * JOULES_PER_KWH

    @property
    def tokens(self) -> float:
        """Tokens that the run itself trained on: of a branch, its cooldown's."""
        return self.record.n_tokens * own_share(self.record)


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenExpense:
    """What a run without a record has cost so far."""

    state: str
    config: BillConfig
    bill: Bill


@dataclass(frozen=True, kw_only=True, slots=True)
class Saving:
    """FLOPs of a sweep beside those of the fixed way to train it."""

    way: str
    """branched or adaptive."""
    flops_spent: float
    flops_fixed: float
    """Of every cell by itself, or of the fixed grid with the same settings."""

    bill: Bill
    """Of the FLOPs saved, at what the runs' own FLOPs cost."""

    @property
    def text(self) -> str:
        """What was saved, in a sentence without its full stop."""
        share = self.flops_spent / self.flops_fixed
        spent = f"{self.flops_spent:.3g} FLOPs spent, {share:.2f} of {self.flops_fixed:.3g} for"
        beside = {
            "branched": "the cells one by one",
            "adaptive": "the fixed grid with the same budgets, sizes and seeds",
        }[self.way]
        if share >= 1:
            return f"{self.way}: {spent} {beside}: nothing saved"
        saved = energy_text(self.bill).removeprefix("measured ")  # by nobody: it was not spent
        return f"{self.way}: {spent} {beside}: saved about {saved}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Expense:
    """What the runs of a folder have cost, the finished ones and the others apart."""

    runs: tuple[RunExpense, ...]
    savings: tuple[Saving, ...]
    others: tuple[OpenExpense, ...] = ()

    @property
    def bill(self) -> Bill:
        """The sum over the finished runs."""
        return total(run.bill for run in self.runs)

    @property
    def whole(self) -> Bill:
        """The sum over all runs."""
        parts: list[RunExpense | OpenExpense] = [*self.runs, *self.others]
        return total(run.bill for run in parts)

    @property
    def config(self) -> BillConfig | None:
        """How all runs are counted; None where they are not counted alike."""
        found = {run.config for run in self.runs} | {run.config for run in self.others}
        return found.pop() if len(found) == 1 else None

    def facts(self) -> dict[str, Any]:
        """Return the sums as plain values: of the finished runs, then of the others."""
        found = _facts(self.runs) | {"savings": [saving.text for saving in self.savings]}
        return found | ({"without_record": _facts(self.others)} if self.others else {})


def _facts(runs: Sequence[RunExpense] | Sequence[OpenExpense]) -> dict[str, Any]:
    bill = total(run.bill for run in runs)
    return {
        "n_runs": len(runs),
        "device_hours": bill.device_hours,
        "kwh": bill.kwh,
        "co2e_kg": bill.co2e_kg,
        "money": bill.money,
        "energy": bill.mark if bill.kwh is not None else "unknown",
        "sources": list(bill.sources),
    }


def bill_config_of(directory: Path) -> BillConfig | None:
    """Return what a run's config.json says of energy and money; None where it says nothing."""
    try:
        return build(BillConfig, read_json(directory / CONFIG_FILE)["config"]["bill"], "bill")
    except (OSError, ValueError, KeyError, TypeError, ConfigError):
        return None


def expense_of(
    directory: Path, records: Sequence[RunRecord], changes: BillChanges = NO_CHANGES
) -> Expense | None:
    """Return what `records`, whose folders lie in `directory`, have cost, and runs without one.

    None where no run's configuration says how to count. Raises ConfigError for impossible changes.
    """
    found = (run_expense(directory / record.run_id, record, changes) for record in records)
    runs = tuple(run for run in found if run is not None)
    begun = sorted(path.parent for path in directory.glob(f"*/{STATE_FILE}"))
    unfinished = (open_expense(path, changes) for path in begun)
    others = tuple(run for run in unfinished if run is not None)
    if not runs:
        return Expense(runs=(), savings=(), others=others) if others else None
    spent = sum(run.record.flops_spent for run in runs)
    whole = sum(run.record.flops_spent / own_share(run.record) for run in runs)
    bill = total(run.bill for run in runs)
    ways = {"branched": whole if spent < whole else None, "adaptive": _grid_flops(directory)}
    savings = tuple(
        Saving(way=way, flops_spent=spent, flops_fixed=fixed, bill=bill.times(fixed / spent - 1.0))
        for way, fixed in ways.items()
        if fixed is not None
    )
    return Expense(runs=runs, savings=savings, others=others)


def run_expense(
    directory: Path, record: RunRecord, changes: BillChanges = NO_CHANGES
) -> RunExpense | None:
    """Return what one run has cost; None where its folder does not say how to count."""
    own = bill_config_of(directory)
    if own is None:
        return None
    config = changes.applied(own)
    return RunExpense(
        record=record,
        config=config,
        bill=bill_of(record, config),
    )


def open_expense(directory: Path, changes: BillChanges = NO_CHANGES) -> OpenExpense | None:
    """Return what a run without a record has cost; None where its folder does not say."""
    if (directory / RECORD_FILE).is_file():
        return None
    own, spent = bill_config_of(directory), read_spent(directory)
    if own is None or spent is None:
        return None
    config = changes.applied(own)
    return OpenExpense(state=standing(directory)[0], config=config, bill=bill_of(spent, config))


def _grid_flops(directory: Path) -> float | None:
    """Return the FLOPs of the fixed grid that an adaptive sweep notes beside its rounds."""
    try:
        return float(read_json(directory / ROUNDS_FILE)["grid_flops"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def energy_text(bill: Bill, config: BillConfig | None = None) -> str:
    """Return energy and carbon with their mark, and by what grid; a plain word where unknown."""
    if bill.kwh is None or bill.co2e_kg is None:
        return "energy and carbon unknown: set bill.device_watts"
    where = ""
    if config is not None:
        where = f" ({config.grid:g} g/kWh, {config.region}, PUE {config.pue:g})"
    return f"{bill.mark} {work_text(bill.kwh)}, {carbon_text(bill.co2e_kg)} CO2e{where}"


def money_text(bill: Bill, config: BillConfig | None) -> str:
    """Return the money, or that no price is set."""
    if bill.money is None or config is None:
        return "no price set (bill.price_per_hour)"
    return f"{amount_text(bill.money)} {config.currency}"


def bill_text(bill: Bill, config: BillConfig | None) -> str:
    """Return energy, carbon and money in a line."""
    return f"{energy_text(bill, config)}; {money_text(bill, config)}"


def amount_text(money: float) -> str:
    """Return an amount of money to two places, below a hundredth to two significant digits."""
    return f"{money:.2f}" if money >= 0.01 or money == 0 else f"{Decimal(f'{money:.1e}'):f}"


def cost_lines(expense: Expense, noun: str = "cell") -> list[str]:
    """Return the cost of the finished runs, and of the others in a line of its own."""
    lines = []
    if expense.runs:
        runs = plural(len(expense.runs), f"finished {noun}")
        lines.append(f"cost of {runs}: {bill_text(expense.bill, expense.config)}")
    if expense.others:
        lines.append(f"{'and' if lines else 'cost so far:'} {others_text(expense.others, noun)}")
    return lines


def others_text(others: Sequence[OpenExpense], noun: str) -> str:
    """Return what runs without a record have cost, and how they stand."""
    bill = total(run.bill for run in others)
    energy = f"{bill.device_hours:.3g} device hours" if bill.kwh is None else energy_text(bill)
    currencies = "/".join(sorted({run.config.currency for run in others}))
    money = "" if bill.money is None else f", {amount_text(bill.money)} {currencies}"
    states = Counter(run.state for run in others)
    how = ", ".join(f"{n} {state}" for state, n in sorted(states.items()))
    return f"{energy}{money} in {plural(len(others), noun)} without a record ({how})"


def work_text(kwh: float) -> str:
    """Return an energy in watt-hours where it is less than a hundredth of a kilowatt-hour."""
    return f"{kwh:.3g} kWh" if kwh >= 0.01 or kwh == 0 else f"{kwh * 1e3:.3g} Wh"


def carbon_text(kg: float) -> str:
    """Return a mass of CO2e in grams where it is less than a kilogram."""
    return f"{kg * 1e3:.3g} g" if kg < 1.0 else f"{kg:.3g} kg"
