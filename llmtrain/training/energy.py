"""Joules of a run, from a counter where the machine has one; never a guess passed off as one."""

import contextlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

DRIVER = Path("/sys/module/nvidia/version")
POWERCAP = Path("/sys/class/powercap")
PROC_STAT = Path("/proc/stat")
PACKAGE = re.compile(r"intel-rapl:\d+")
"""A CPU package; its parts (cores, memory) have a second number."""


class Counter(Protocol):
    """What an energy counter tells; the joules of two moments are subtracted."""

    source: str

    def take(self) -> float:
        """Return this run's joules since the last call. Raises OSError or ValueError."""


class EnergyMeter:
    """Adds up what an energy counter says from the start of a run to its end.

    A counter belongs to a whole device or package. What it counts is divided: a package's by the
    processor time of this process over that of all, a GPU's evenly over the processes on it.
    """

    def __init__(self, device: torch.device) -> None:
        self.counter = _counter(device)
        self.source = "none" if self.counter is None else self.counter.source
        self.before = 0.0
        self.total = 0.0

    def start_from(self, joules: float | None) -> None:
        """Count on from what the run had used when it was saved; None: nobody knows."""
        if joules is None:
            self.counter = None
        else:
            self.before = joules

    def joules(self, n_sharers: int = 1) -> float | None:
        """Return the joules so far, or None where nothing measures them.

        Of what was counted here, one part for each of the runs that shared the device as one.
        Call it more often than once an hour: a package's counter wraps around.
        """
        if self.counter is not None:
            try:
                self.total += self.counter.take()
            except (OSError, ValueError):
                self.counter = None
        return None if self.counter is None else self.before + self.total / n_sharers


class PackageCounter:
    """The energy of all CPU packages (RAPL), by the share of this process in their work."""

    source = "rapl"

    def __init__(self, packages: list[Path]) -> None:
        self.packages = packages
        self.ranges = [float((p / "max_energy_range_uj").read_text()) for p in packages]
        self.last = self._read()

    def take(self) -> float:
        """Return this process's joules since the last call."""
        before, self.last = self.last, self._read()
        microjoules = sum(
            (now - then) % span  # a counter that has wrapped around goes on from 0
            for now, then, span in zip(
                self.last.microjoules, before.microjoules, self.ranges, strict=True
            )
        )
        busy = self.last.busy_s - before.busy_s
        own = self.last.own_s - before.own_s
        return microjoules * 1e-6 * (min(1.0, own / busy) if busy > 0 else 1.0)

    def _read(self) -> "_Reading":
        return _Reading(
            microjoules=[float((p / "energy_uj").read_text()) for p in self.packages],
            busy_s=_busy_seconds(),
            own_s=time.process_time(),
        )


@dataclass(frozen=True, slots=True)
class _Reading:
    microjoules: list[float]
    busy_s: float
    own_s: float


class BoardCounter:
    """The energy of one GPU (NVML), divided evenly over the processes that compute on it."""

    source = "nvml"

    def __init__(self, pynvml: Any, handle: Any) -> None:
        self.pynvml, self.handle = pynvml, handle
        self.last = self._read()

    def take(self) -> float:
        """Return this process's joules since the last call."""
        before, self.last = self.last, self._read()
        return (self.last - before) * 1e-3 / self.n_processes()

    def n_processes(self) -> int:
        """Return how many processes compute on the GPU, this one at least."""
        try:
            return max(1, len(self.pynvml.nvmlDeviceGetComputeRunningProcesses(self.handle)))
        except self.pynvml.NVMLError:
            return 1

    def _read(self) -> float:
        try:
            return float(self.pynvml.nvmlDeviceGetTotalEnergyConsumption(self.handle))
        except self.pynvml.NVMLError as error:
            raise OSError(str(error)) from error


def driver_version() -> str:
    """Return the version of the GPU's driver, or 'unknown' where nothing says it."""
    with contextlib.suppress(OSError):
        return DRIVER.read_text(encoding="utf-8").strip()
    try:
        import pynvml  # noqa: PLC0415 - optional: the `energy` extra
    except ImportError:
        return "unknown"
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return "unknown"


def _counter(device: torch.device) -> Counter | None:
    with contextlib.suppress(OSError, ValueError):  # absent, or readable by root only
        if device.type == "cuda":
            return _board(device)
        packages = sorted(p for p in POWERCAP.glob("intel-rapl:*") if PACKAGE.fullmatch(p.name))
        return PackageCounter(packages) if packages else None
    return None


def _board(device: torch.device) -> Counter | None:
    try:
        import pynvml  # noqa: PLC0415 - optional: the `energy` extra
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        # By UUID: CUDA_VISIBLE_DEVICES renumbers CUDA's devices, but not NVML's.
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        return BoardCounter(pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid))
    except pynvml.NVMLError:
        return None


def _busy_seconds() -> float:
    """Return the processor seconds of all processes since boot. Raises OSError or ValueError."""
    fields = PROC_STAT.read_text(encoding="ascii").splitlines()[0].split()[1:]
    user, nice, system, _idle, _waiting, *rest = map(float, fields[:8])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
