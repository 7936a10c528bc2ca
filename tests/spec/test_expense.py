"""What a folder of runs has cost, by hand, and what branches and adaptive rounds saved."""

import dataclasses
import json

import pytest

from llmtrain.spec.bill import PLAIN, Bill, BillChanges
from llmtrain.spec.errors import ConfigError
from llmtrain.spec.expense import bill_text, cost_lines, expense_of, money_text
from llmtrain.spec.record import RunRecord, Spent
from llmtrain.spec.rundir import write_state


def record(name: str, **changes: object) -> RunRecord:
    """Return a record of one hour on one thread, 1000 tokens and 1e9 FLOPs."""
    fields = {field.name: None for field in dataclasses.fields(RunRecord)}
    known = {
        "run_id": name,
        "n_tokens": 1000,
        "flops_convention": "full_attention",
        "flops": {"full_attention": 1e9},
        "flops_spent": 1e9,
        "flops_budget": 1e9,
        "seconds": {"train": 3600.0},
        "hardware": {"device": "cpu", "threads": "1"},
        "energy_j": 3.6e6,
        "energy_source": "rapl",
    }
    return RunRecord(**fields | known | changes)  # type: ignore[arg-type]


def folder(tmp_path, *records, **bill):
    for run in records:
        (tmp_path / run.run_id).mkdir()
        config = {"config": {"bill": dataclasses.asdict(PLAIN) | bill}}
        (tmp_path / run.run_id / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_measured_runs_are_added_by_their_own_configuration(tmp_path):
    runs = [record("a"), record("b", energy_j=7.2e6)]
    found = expense_of(folder(tmp_path, *runs, region="FRA", pue=1.5, price_per_hour=2.0), runs)
    assert found.bill.kwh == pytest.approx(3 * 1.5)
    assert found.bill.co2e_kg == pytest.approx(3 * 1.5 * 0.056)
    assert found.bill.money == pytest.approx(4.0)
    assert found.bill.mark == "measured"
    assert [run.joules for run in found.runs] == pytest.approx([3.6e6, 7.2e6])
    assert bill_text(found.bill, found.config) == (
        "measured 4.5 kWh, 252 g CO2e (56 g/kWh, FRA, PUE 1.5); 4.00 USD"
    )
    assert found.savings == ()


def test_a_reader_counts_otherwise(tmp_path):
    runs = [record("a")]
    where = folder(tmp_path, *runs, grams_per_kwh=20.0)
    assert expense_of(where, runs).bill.co2e_kg == pytest.approx(0.02)
    other = BillChanges(region="POL", price_per_hour=1.5, currency="EUR")
    found = expense_of(where, runs, other)
    assert found.bill.co2e_kg == pytest.approx(0.6619)  # not the 20 g of the other grid
    assert money_text(found.bill, found.config) == "1.50 EUR"


@pytest.mark.parametrize(
    ("money", "text"),
    [
        (0.00042123, "0.00042"), (0.0009, "0.00090"), (4.2e-7, "0.00000042"),
        (0.0099, "0.0099"), (0.01, "0.01"), (0.0, "0.00"), (12.3456, "12.35"),
    ],
)  # fmt: skip
def test_small_money_has_two_significant_digits(money, text):
    bill = Bill(device_hours=1.0, kwh=1.0, co2e_kg=0.1, money=money, sources=("estimated",))
    assert money_text(bill, PLAIN) == f"{text} {PLAIN.currency}"
    assert bill_text(bill, PLAIN).endswith(f"; {text} {PLAIN.currency}")


def test_an_estimate_beside_a_counter_marks_the_sum(tmp_path):
    runs = [record("a"), record("b", energy_j=14400.0, energy_source="estimated")]
    found = expense_of(folder(tmp_path, *runs), runs)
    assert found.bill.mark == "partly estimated"
    assert found.bill.kwh == pytest.approx(1.004)
    again = expense_of(tmp_path, runs, BillChanges(device_watts=100.0))
    assert again.bill.kwh == pytest.approx(1.1)  # the counter is believed, the estimate made anew


def test_an_older_record_without_energy_is_estimated_now(tmp_path):
    runs = [record("a", energy_j=None, energy_source="none")]
    found = expense_of(folder(tmp_path, *runs), runs)
    assert found.bill.mark == "estimated"
    assert found.runs[0].joules == pytest.approx(4.0 * 3600)


def test_branches_save_what_their_trunk_has_trained(tmp_path):
    runs = [record("trunk"), record("branch", flops_spent=2e8, energy_j=7.2e5)]
    (saving,) = expense_of(folder(tmp_path, *runs), runs).savings
    assert (saving.way, saving.flops_spent, saving.flops_fixed) == ("branched", 1.2e9, 2e9)
    assert saving.bill.kwh == pytest.approx(1.2 * (2.0 / 1.2 - 1.0))
    assert saving.text.startswith("branched: 1.2e+09 FLOPs spent, 0.60 of 2e+09 for the cells one")
    assert "saved about 0.8 kWh" in saving.text


def test_rounds_are_compared_with_the_fixed_grid_they_note(tmp_path):
    runs = [record("a")]
    where = folder(tmp_path, *runs)
    for grid, text in ((4e9, "saved about 3 kWh"), (5e8, "nothing saved")):
        (where / "rounds.json").write_text(json.dumps({"grid_flops": grid}))
        (saving,) = expense_of(where, runs).savings
        assert saving.way == "adaptive"
        assert text in saving.text


def half_done(tmp_path, name, state, **changes):
    """Leave a run that has used an hour and 1 kWh, and has no record."""
    done = record(name, **changes)
    folder(tmp_path, done, price_per_hour=2.0)
    spent = {field.name: getattr(done, field.name) for field in dataclasses.fields(Spent)}
    write_state(tmp_path / name, state, "why", Spent(**spent))


def test_runs_without_a_record_are_counted_apart(tmp_path):
    runs = [record("a", energy_j=7.2e6)]
    half_done(tmp_path, "a", "done")
    (tmp_path / "a/record.json").touch()  # it counts what the state holds
    half_done(tmp_path, "b", "failed")
    half_done(tmp_path, "c", "failed")
    half_done(tmp_path, "d", "running", energy_j=None, energy_source="none")  # nobody is at it
    found = expense_of(tmp_path, runs)
    assert (found.bill.kwh, found.bill.money) == pytest.approx((2.0, 2.0))
    assert (found.whole.kwh, found.whole.money) == pytest.approx((4.004, 8.0))
    assert cost_lines(found) == [
        "cost of 1 finished cell: measured 2 kWh, 950 g CO2e (475 g/kWh, world, PUE 1); 2.00 USD",
        "and partly estimated 2 kWh, 952 g CO2e, 6.00 USD in 3 cells without a record "
        "(2 failed, 1 stopped)",
    ]
    facts = found.facts()
    assert (facts["n_runs"], facts["without_record"]["n_runs"]) == (1, 3)
    assert facts["without_record"]["kwh"] == pytest.approx(2.004)
    assert facts["without_record"]["energy"] == "partly estimated"
    (alone,) = cost_lines(expense_of(tmp_path, []))
    assert alone.startswith("cost so far: partly estimated 2 kWh")


def test_a_state_that_does_not_say_what_was_used_says_nothing(tmp_path):
    runs = [record("a"), record("b")]
    folder(tmp_path, *runs)
    write_state(tmp_path / "b", "failed", "loss nan")
    assert len(cost_lines(expense_of(tmp_path, runs[:1]))) == 1
    assert "without_record" not in expense_of(tmp_path, runs[:1]).facts()
    assert expense_of(tmp_path, []) is None


def test_what_was_used_outlives_the_states_that_do_not_say_it(tmp_path):
    half_done(tmp_path, "a", "failed")
    write_state(tmp_path / "a", "quarantined", "again")
    write_state(tmp_path / "a", "planned")
    (other,) = expense_of(tmp_path, []).others
    assert (other.state, other.bill.kwh) == ("planned", 1.0)


def test_runs_that_do_not_say_how_to_count_cost_nothing_that_is_known(tmp_path):
    assert expense_of(tmp_path, [record("a")]) is None


@pytest.mark.parametrize("change", [{"region": "ATLANTIS"}, {"pue": 0.5}, {"currency": "<b>"}])
def test_changes_that_cannot_be_are_refused(change):
    with pytest.raises(ConfigError, match=r"bill\."):
        BillChanges(**change)


def test_an_unknown_energy_is_a_word():
    bill = Bill(device_hours=1.0, kwh=None, co2e_kg=None, money=None, sources=("none",))
    text = bill_text(bill, PLAIN)
    assert (
        text
        == "energy and carbon unknown: set bill.device_watts; no price set (bill.price_per_hour)"
    )
