"""Planted spikes on curves of a power decay with noise: what is found, and what is imagined."""

import json

import numpy as np
import pytest

from llmtrain.training import spikes
from llmtrain.training.spikes import MEMORY, SpikeCounter, leaps

N = 1000


def curve(rng):
    """Return losses of a run and the sd of their noise: 1 to 50 thousandths of a nat."""
    noise = 10 ** rng.uniform(-3, -1.3)
    steps = np.arange(1, N + 1)
    trend = 1.7 + rng.uniform(2, 8) * steps ** -rng.uniform(0.2, 0.6)
    return trend + noise * rng.standard_normal(N), noise


def found_in(losses):
    """Return the steps at which spikes are counted when the losses come one by one."""
    counter, found = SpikeCounter(), []
    counter.read(0, losses.tolist())
    counter.judge()
    found = MEMORY + np.flatnonzero(leaps(losses) > spikes.THRESHOLD)
    assert counter.count == len(found)
    return set(found.tolist())


def plant_and_count(n_curves):
    """Return (spikes of 10 sd or more, those found, false alarms, steps without a spike)."""
    rng = np.random.default_rng(0)
    planted = hit = false = quiet = 0
    for number in range(n_curves):
        losses, noise = curve(rng)
        spike = set()
        if number % 2:
            at, height = int(rng.integers(MEMORY, N - 3)), rng.uniform(3, 50)
            length = int(rng.integers(1, 4))  # a spike of a few steps that dies away
            losses[at : at + length] += noise * height * 0.5 ** np.arange(length)
            spike = set(range(at, at + length))
            planted += height >= 10
        found = found_in(losses)
        hit += bool(spike) and height >= 10 and bool(found & spike)
        false += len(found - spike)
        quiet += N - MEMORY - len(spike)
    return planted, hit, false, quiet


@pytest.mark.parametrize("n_curves", [100, pytest.param(500, marks=pytest.mark.slow)])
def test_spikes_of_ten_sd_are_found_without_false_alarms(n_curves):
    planted, hit, false, quiet = plant_and_count(n_curves)
    print(f"{hit} of {planted} found; {false} false alarms in {quiet} steps")
    assert planted > n_curves / 3
    assert hit >= 0.99 * planted
    assert false <= quiet / 10_000


def test_a_threshold_ten_times_higher_misses_them(monkeypatch):
    monkeypatch.setattr(spikes, "THRESHOLD", 10 * spikes.THRESHOLD)
    planted, hit, _, _ = plant_and_count(100)
    assert hit < 0.1 * planted


def spiky(n_spikes=6):
    rng = np.random.default_rng(1)
    losses, noise = curve(rng)
    losses[rng.choice(np.arange(MEMORY, N), n_spikes, replace=False)] += 30 * noise
    return losses


def test_how_the_losses_are_cut_and_saved_changes_nothing():
    losses, rng = spiky(), np.random.default_rng(2)
    cut = SpikeCounter()
    begin = 0
    while begin < N:
        length = int(rng.integers(1, 90))
        cut.read(begin, losses[begin : begin + length].tolist())
        begin += length
        resumed = SpikeCounter()
        resumed.restore(json.loads(json.dumps(cut.state())))
        cut = resumed
    cut.judge()
    assert cut.count == len(found_in(losses)) == 6


def test_what_is_no_number_leaves_no_trace():
    losses = spiky()
    whole, with_nan = SpikeCounter(), SpikeCounter()
    whole.read(0, losses.tolist())
    with_nan.read(0, np.insert(losses, [50, 300, 301], np.nan).tolist())
    whole.judge()
    with_nan.judge()
    assert with_nan.losses == whole.losses
    assert with_nan.count == whole.count > 0


def test_another_input_shape_is_not_compared_with_the_one_before():
    flat = np.random.default_rng(3).normal(3.0, 0.01, N)
    flat[500:] += 1.0
    plain, told = SpikeCounter(), SpikeCounter()
    plain.read(0, flat.tolist())
    told.read(0, flat.tolist(), edges=[500])
    assert plain.count > 0
    assert told.count == 0


def test_equal_losses_are_no_spikes():
    counter = SpikeCounter()
    counter.read(0, [2.0] * 300)
    counter.judge()
    assert counter.count == 0
