"""Joules of a run, from a counter where the machine has one; never a guess passed off as one."""

import contextlib
from pathlib import Path
from typing import Any

import torch

RAPL = Path("/sys/class/powercap/intel-rapl:0/energy_uj")
DRIVER = Path("/sys/module/nvidia/version")
RAPL_RANGE = RAPL.with_name("max_energy_range_uj")


class EnergyMeter:
    """Reads an energy counter at the start and at the end of a run.

    The counters belong to the whole device or package, not to one process.
    """

    def __init__(self, device: torch.device) -> None:
        self.handle = _nvml_handle(device) if device.type == "cuda" else None
        self.source = (
            "nvml" if self.handle is not None else "rapl" if _rapl() is not None else "none"
        )
        self.start = self._joules()

    def joules(self) -> float | None:
        """Return the joules since the meter was made, or None where nothing measures them."""
        now = self._joules()
        if now is None or self.start is None:
            return None
        if now < self.start and self.source == "rapl":  # the counter wraps around
            return now - self.start + float(RAPL_RANGE.read_text()) * 1e-6
        return now - self.start

    def _joules(self) -> float | None:
        if self.handle is not None:
            import pynvml  # noqa: PLC0415 - optional: the `energy` extra

            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)) * 1e-3
        return _rapl() if self.source == "rapl" else None


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


def _rapl() -> float | None:
    with contextlib.suppress(OSError, ValueError):  # absent, or readable by root only
        return float(RAPL.read_text()) * 1e-6
    return None


def _nvml_handle(device: torch.device) -> Any:
    try:
        import pynvml  # noqa: PLC0415 - optional: the `energy` extra
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        # By UUID: CUDA_VISIBLE_DEVICES renumbers CUDA's devices, but not NVML's.
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return None
    return handle
