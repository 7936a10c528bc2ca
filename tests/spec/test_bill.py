"""Energy, carbon and money: by hand, and never a guess passed off as a measurement."""

import dataclasses
from typing import Any

import pytest

from llmtrain.spec.bill import Bill, BillConfig, bill_for, rated_watts, total
from llmtrain.spec.errors import ConfigError

PLAIN: dict[str, Any] = {
    "region": "FRA",
    "grams_per_kwh": None,
    "pue": 1.5,
    "device_watts": None,
    "price_per_hour": 2.0,
    "currency": "EUR",
    "assumed_mfu": None,
}
H200 = {"gpu": "NVIDIA H200", "n_devices": "4"}


def test_an_hour_on_four_gpus_without_a_counter_is_time_times_rated_power() -> None:
    bill = bill_for(3600.0, BillConfig(**PLAIN), H200)
    assert bill.device_hours == 4.0
    assert bill.kwh == pytest.approx(4 * 0.7 * 1.5)
    assert bill.co2e_kg == pytest.approx(4 * 0.7 * 1.5 * 56.0 / 1000)
    assert bill.money == 8.0
    assert bill.estimated


def test_a_counter_is_believed_and_named() -> None:
    bill = bill_for(60.0, BillConfig(**PLAIN), H200, joules=3.6e6, source="nvml")
    assert bill.kwh == 1.5  # one at the device, half as much again at the site
    assert bill.sources == ("nvml",)
    assert not bill.estimated


def test_an_unknown_gpu_has_no_energy_rather_than_a_wrong_one() -> None:
    bill = bill_for(60.0, BillConfig(**PLAIN), {"gpu": "Unheard Of 9000"})
    assert (bill.kwh, bill.co2e_kg, bill.sources) == (None, None, ("none",))
    watts = BillConfig(**PLAIN | {"device_watts": 100.0})
    assert bill_for(36.0, watts, {"gpu": "Unheard Of 9000"}).kwh == pytest.approx(0.0015)


@pytest.mark.parametrize(
    ("name", "watts"),
    [
        ("NVIDIA H100 PCIe", 350.0),
        ("NVIDIA H100 80GB HBM3", 700.0),
        ("NVIDIA A100-SXM4-80GB", 400.0),
    ],
)
def test_rated_power_of_boards_whose_names_contain_each_other(name: str, watts: float) -> None:
    assert rated_watts({"gpu": name}) == watts


def test_a_sum_is_unknown_where_a_part_is() -> None:
    known = bill_for(60.0, BillConfig(**PLAIN), H200, joules=1e6, source="nvml")
    guessed = bill_for(60.0, BillConfig(**PLAIN), H200)
    unknown = bill_for(60.0, BillConfig(**PLAIN | {"price_per_hour": None}), {"gpu": "?"})
    both = total([known, guessed])
    assert both.kwh == pytest.approx((known.kwh or 0) + (guessed.kwh or 0))
    assert both.sources == ("estimated", "nvml")
    assert both.estimated
    every = total([known, guessed, unknown])
    assert (every.kwh, every.co2e_kg, every.money) == (None, None, None)
    assert every.device_hours == pytest.approx(9 / 60)
    assert total([]) == Bill(device_hours=0, kwh=0, co2e_kg=0, money=0, sources=())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"region": "ATLANTIS"}, "bill.region='ATLANTIS' is not among world"),
        ({"pue": 0.9}, "bill.pue=0.9 must lie in"),
        ({"grams_per_kwh": float("nan")}, "bill.grams_per_kwh"),
        ({"price_per_hour": -1.0}, "bill.price_per_hour"),
        ({"device_watts": 0.0}, "bill.device_watts"),
        ({"currency": "<b>"}, "bill.currency"),
        ({"assumed_mfu": 1.5}, "bill.assumed_mfu"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BillConfig(**PLAIN | change)
    mine = BillConfig(**PLAIN | {"region": "mine", "grams_per_kwh": 20.0})
    assert dataclasses.replace(mine, pue=1.0).grid == 20.0
