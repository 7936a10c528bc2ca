"""Joules by counters that are played: their wrap-around, their shares, resume, and none at all."""

import os
import signal
import sys
from types import SimpleNamespace

import pytest
import torch

from llmtrain.corpus.shards import open_corpus
from llmtrain.spec.bill import CPU_WATTS_PER_THREAD, bill_of, joules_per_token
from llmtrain.spec.errors import DivergedError, InterruptedRunError
from llmtrain.spec.expense import expense_of, run_expense
from llmtrain.spec.rundir import read_spent, run_directory, standing
from llmtrain.training import energy
from llmtrain.training.energy import EnergyMeter
from llmtrain.training.loop import train

CPU = torch.device("cpu")
RANGE = 1000e6  # microjoules


class Machine:
    """Two packages' counters and the processor's clock, as files."""

    def __init__(self, folder, monkeypatch):
        self.folder = folder
        self.own_s = 0.0
        self.set([0.0, 0.0], busy_s=0.0)
        monkeypatch.setattr(energy, "POWERCAP", folder)
        monkeypatch.setattr(energy, "PROC_STAT", folder / "stat")
        monkeypatch.setattr(energy.os, "sysconf", lambda _name: 100)
        monkeypatch.setattr(energy.time, "process_time", lambda: self.own_s)

    def set(self, joules, *, busy_s):
        for number, value in enumerate(joules):
            package = self.folder / f"intel-rapl:{number}"
            package.mkdir(exist_ok=True)
            (package / "energy_uj").write_text(f"{value * 1e6 % RANGE:.0f}\n")
            (package / "max_energy_range_uj").write_text(f"{RANGE:.0f}\n")
            part = self.folder / f"intel-rapl:{number}:0"  # the cores: in the package's already
            part.mkdir(exist_ok=True)
            (part / "energy_uj").write_text("7\n")
        user, system = int(busy_s * 80), int(busy_s * 20)
        (self.folder / "stat").write_text(f"cpu {user} 0 {system} 99999 55 0 0 0 0 0\ncpu0 1 1\n")


def test_packages_are_added_and_shared_by_processor_time(tmp_path, monkeypatch):
    machine = Machine(tmp_path, monkeypatch)
    meter = EnergyMeter(CPU)
    machine.own_s = 5.0
    machine.set([100.0, 60.0], busy_s=20.0)  # a quarter of the work is this process's
    assert meter.source == "rapl"
    assert meter.joules() == pytest.approx(40.0)
    machine.own_s = 15.0
    machine.set([200.0, 160.0], busy_s=30.0)  # all of it
    assert meter.joules() == pytest.approx(240.0)


def test_a_counter_that_wraps_around_between_two_looks_loses_nothing(tmp_path, monkeypatch):
    machine = Machine(tmp_path, monkeypatch)
    meter = EnergyMeter(CPU)
    for joules in (900.0, 1700.0, 2500.0):  # the range is 1000
        machine.own_s += 1.0
        machine.set([joules, 0.0], busy_s=machine.own_s)
        meter.joules()
    assert meter.joules() == pytest.approx(2500.0)


def test_a_counter_that_goes_away_leaves_no_number(tmp_path, monkeypatch):
    machine = Machine(tmp_path, monkeypatch)
    meter = EnergyMeter(CPU)
    machine.set([100.0, 0.0], busy_s=1.0)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert meter.joules() is None
    meter.start_from(None)
    assert meter.joules() is None


def test_a_resumed_meter_counts_on_unless_nobody_knows_what_came_before(tmp_path, monkeypatch):
    machine = Machine(tmp_path, monkeypatch)
    known, unknown = EnergyMeter(CPU), EnergyMeter(CPU)
    known.start_from(1000.0)
    unknown.start_from(None)
    machine.own_s = 1.0
    machine.set([50.0, 0.0], busy_s=1.0)
    assert known.joules() == pytest.approx(1050.0)
    assert unknown.joules() is None


class NVMLError(Exception):
    pass


def fake_nvml(counter_mj, n_processes):
    readings = iter(counter_mj)
    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda _handle: next(readings),
        nvmlDeviceGetComputeRunningProcesses=lambda _handle: [None] * n_processes,
    )


@pytest.mark.parametrize(("n_processes", "joules"), [(0, 90.0), (1, 90.0), (2, 45.0)])
def test_a_gpu_is_found_by_its_uuid_and_shared_evenly(monkeypatch, n_processes, joules):
    nvml = fake_nvml([10_000, 70_000, 100_000], n_processes)
    asked = []
    nvml.nvmlDeviceGetHandleByUUID = asked.append
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    properties = SimpleNamespace(uuid="abc")
    monkeypatch.setattr(energy.torch.cuda, "get_device_properties", lambda _device: properties)
    meter = EnergyMeter(torch.device("cuda", 0))
    assert (meter.source, asked) == ("nvml", ["GPU-abc"])
    meter.joules()
    assert meter.joules() == pytest.approx(joules)


def test_a_gpu_without_the_counter_has_no_number(monkeypatch):
    nvml = fake_nvml([], 1)

    def refuse(_handle):
        raise NVMLError("not supported")

    nvml.nvmlDeviceGetTotalEnergyConsumption = refuse
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    properties = SimpleNamespace(uuid="abc")
    monkeypatch.setattr(energy.torch.cuda, "get_device_properties", lambda _device: properties)
    meter = EnergyMeter(torch.device("cuda", 0))
    assert (meter.source, meter.joules()) == ("none", None)


class StoppedError(Exception):
    pass


def test_without_a_counter_the_record_says_estimated(make, tiny_corpus_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "absent")
    bill = {"bill.region": "FRA", "bill.pue": 1.5, "bill.price_per_hour": 3.6}
    config = make(bill | {"runs_root": str(tmp_path), "tracking.wandb": "disabled"})
    record = train(config, open_corpus(tiny_corpus_dir))
    seconds = sum(record.seconds.values())
    assert record.energy_source == "estimated"
    assert record.energy_j == pytest.approx(CPU_WATTS_PER_THREAD * seconds)
    assert joules_per_token(record) == pytest.approx(record.energy_j / record.n_tokens)
    expense = run_expense(run_directory(config), record)
    assert expense.bill == bill_of(record, config.bill)
    assert expense.bill.mark == "estimated"
    assert expense.bill.kwh == pytest.approx(record.energy_j / 3.6e6 * 1.5)
    assert expense.bill.co2e_kg == pytest.approx(expense.bill.kwh * 0.056)
    assert expense.bill.money == pytest.approx(seconds / 1000)
    assert expense.joules == pytest.approx(record.energy_j)


@pytest.fixture
def taken(monkeypatch):
    """The joules that a planted counter has told: 10 at every look, of whatever run looks."""
    told = []

    class Counter:
        source = "rapl"

        def take(self):
            told.append(10.0)
            return 10.0

    monkeypatch.setattr(energy, "_counter", lambda _device: Counter())
    return told


@pytest.mark.parametrize("every", [1, 7, 100])  # 100: no checkpoint, the second start begins anew
def test_what_every_start_has_used_is_in_the_record_once(
    make, tiny_corpus_dir, tmp_path, taken, every
):
    config = make({"runs_root": str(tmp_path), "checkpoint.every_steps": every})
    corpus, folder = open_corpus(tiny_corpus_dir), run_directory(config)
    seconds, ends = 0.0, [10, 15]

    def look(progress):
        assert read_spent(folder).wall_s > seconds  # no start begins at 0 again
        if ends and progress.step == ends[0]:
            raise StoppedError

    while ends:
        with pytest.raises(StoppedError):
            train(config, corpus, on_progress=look)
        spent = read_spent(folder)
        assert (spent.energy_j, spent.energy_source) == (sum(taken), "rapl")
        seconds = spent.wall_s
        ends.pop(0)
        (cost,) = expense_of(tmp_path / "test", []).others
        assert cost.state == "failed"
        assert cost.bill.kwh == pytest.approx(sum(taken) / 3.6e6)
        assert cost.bill.device_hours == pytest.approx(seconds / 3600)
    record = train(config, corpus, on_progress=look)
    assert (record.energy_j, record.energy_source) == (sum(taken), "rapl")
    assert sum(record.seconds.values()) > seconds
    whole = expense_of(tmp_path / "test", [record])
    assert (whole.others, whole.bill) == ((), whole.whole)
    assert whole.bill.kwh == pytest.approx(sum(taken) / 3.6e6)


def test_a_stopped_run_is_paid_for_once_when_it_is_done(make, tiny_corpus_dir, tmp_path, taken):
    config = make({"runs_root": str(tmp_path)})
    corpus, folder = open_corpus(tiny_corpus_dir), run_directory(config)

    def stop(progress):
        if progress.step == 10:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(InterruptedRunError):
        train(config, corpus, on_progress=stop)
    (cost,) = expense_of(tmp_path / "test", []).others
    assert (cost.state, cost.bill.kwh) == ("stopped", pytest.approx(sum(taken) / 3.6e6))
    spent = read_spent(folder)
    record = train(config, corpus)
    assert record.energy_j == sum(taken)
    assert record.seconds["train"] > spent.seconds["train"]
    assert expense_of(tmp_path / "test", [record]).others == ()


def test_a_run_that_diverges_has_cost_what_it_trained(make, tiny_corpus_dir, tmp_path, taken):
    changes = {"recipe.peak_lr": 1e30, "optimizer.grad_clip": None}
    config = make(changes | {"runs_root": str(tmp_path)})
    with pytest.raises(DivergedError):
        train(config, open_corpus(tiny_corpus_dir))
    spent = read_spent(run_directory(config))
    assert spent.energy_j == sum(taken) > 0
    assert spent.seconds["train"] > 0
    (cost,) = expense_of(tmp_path / "test", []).others
    assert (cost.state, cost.bill.mark) == ("failed", "measured")


def test_a_kill_leaves_what_the_last_save_had_used(make, tiny_corpus_dir, tmp_path, taken):
    """Of a process that cannot say goodbye, a later start knows no more."""
    config = make({"runs_root": str(tmp_path), "checkpoint.every_steps": 6})
    folder, noted = run_directory(config), []

    def look(progress):
        if progress.step == 8:
            noted.append((read_spent(folder), standing(folder)[0], sum(taken)))

    train(config, open_corpus(tiny_corpus_dir), on_progress=look)
    ((spent, state, joules),) = noted
    assert 0 < spent.energy_j < joules
    assert spent.seconds["train"] > 0
    assert state == "running"


def test_joules_before_a_stack_are_not_shared_with_it(tmp_path, monkeypatch):
    machine = Machine(tmp_path, monkeypatch)
    meter = EnergyMeter(CPU)
    meter.start_from(1000.0)
    machine.own_s = 1.0
    machine.set([80.0, 0.0], busy_s=1.0)
    assert meter.joules(n_sharers=4) == pytest.approx(1020.0)
