"""The machine under a run: device, precision, seeds, peak, provenance, signals."""

import contextlib
import functools
import hashlib
import os
import platform
import resource
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from torch import nn

import llmtrain
from llmtrain.spec.errors import ConfigError
from llmtrain.spec.redact import redact
from llmtrain.spec.settings import RuntimeConfig
from llmtrain.spec.signals import STOP_SIGNALS, handled
from llmtrain.training.energy import driver_version

# Dense bf16 peaks of one device, TFLOP/s, from the makers' data sheets.
PEAK_TFLOPS = {
    "H200 NVL": 835.5,
    "H200": 989.5,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.5,
    "H100": 989.5,
    "A100": 312.0,
    "L40S": 362.0,
    "A10G": 70.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "V100": 125.0,
}


COMPILED_GRAPHS = 4096  # of one function and process, before compiling fails: shapes x lengths x 2

BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})

# What torch says besides torch.OutOfMemoryError: its CPU allocator, CUDA's libraries, C++.
SIGNS = ("out of memory", "can't allocate memory", "ALLOC_FAILED", "bad_alloc")


def pick_device(config: RuntimeConfig) -> torch.device:
    """Return the device of a run and set the process up for it.

    Raises ConfigError where a GPU is asked for and there is none.
    """
    has_gpu = torch.cuda.is_available()
    refuse_missing_gpu(config)
    torch.set_num_threads(config.n_threads)
    torch.set_flush_denormal(True)
    if config.device == "cpu" or not has_gpu:
        if config.dtype == "bfloat16" and lacks_bfloat16(cpu_flags()):
            _warn_of_bfloat16()
        return torch.device("cpu")
    torch.set_float32_matmul_precision("high")  # TF32
    return torch.device("cuda", torch.cuda.current_device())


def cpu_flags() -> frozenset[str]:
    """Return what an x86 processor says it can do; nothing of another, or where none can ask."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = (line.partition(":")[2].split() for line in lines if line.startswith("flags"))
    return frozenset(next(flags, ()))


def lacks_bfloat16(flags: frozenset[str]) -> bool:
    """Return whether an x86 processor has flags, and none that multiplies bfloat16."""
    return bool(flags) and flags.isdisjoint(BFLOAT16_FLAGS)


@functools.cache
def _warn_of_bfloat16() -> None:
    warn(
        "runtime.dtype=bfloat16 is slower than float32 on a processor without avx512_bf16 or "
        "amx_bf16, many times with AVX2 alone (pytorch issue 146508); use runtime.dtype=float32"
    )


def refuse_missing_gpu(config: RuntimeConfig) -> None:
    """Raise ConfigError where a setting asks for a GPU and there is none."""
    if torch.cuda.is_available():
        return
    settings = [("device", "cuda", "auto"), ("cuda_graph", "on", "off")]
    settings += [("attention", kernel, "auto") for kernel in ("cudnn", "efficient")]
    for key, value, remedy in settings:
        if getattr(config, key) == value:
            raise ConfigError(
                f"runtime.{key}={value}, but torch sees no GPU; use runtime.{key}={remedy}"
            )


def autocast(
    device: torch.device, config: RuntimeConfig
) -> contextlib.AbstractContextManager[None]:
    """Return the context of forward passes: bfloat16 autocast, or nothing for float32."""
    if config.dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Compile blocks by themselves: those of one width, in any model, share their graphs.

    Makes room for every graph of a long-lived worker, and lets none fall back to eager: past its
    limit (8 graphs a function) torch does so with a warning that nobody reads.
    """
    import torch._dynamo  # noqa: PLC0415 - half a second that eager runs do not need

    settings = torch._dynamo.config
    settings.recompile_limit = COMPILED_GRAPHS
    settings.accumulated_recompile_limit = COMPILED_GRAPHS
    settings.fail_on_recompile_limit_hit = True
    for block in blocks:
        block.compile(dynamic=False)


def wait_for(device: torch.device) -> None:
    """Return when the device has done all it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Return a seed for the random numbers of one step, so that resume needs no generator state.

    Devices that share a step differ by `rank`, else their rows would get the same dropout masks.
    """
    name = f"{seed}:{step}" if rank == 0 else f"{seed}:{step}:{rank}"
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def peak_flops(device: torch.device, config: RuntimeConfig) -> float | None:
    """Return the device's peak in FLOP/s, from config or table; None where neither knows."""
    if config.peak_tflops is not None:
        return config.peak_tflops * 1e12
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    if " MIG " in name:  # a part of a GPU: no table says how large
        return None
    return next((peak * 1e12 for key, peak in PEAK_TFLOPS.items() if key in name), None)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def reset_peak_memory(device: torch.device) -> None:
    """Forget the peak so far, where the device keeps one: a warm worker's last run had its own."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak since the reset, allocated on a GPU; on a CPU the process's, resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def hardware(device: torch.device, config: RuntimeConfig) -> dict[str, str]:
    """Return what the run was trained on, as text."""
    facts = {
        "device": device.type,
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": str(os.cpu_count()),
        "threads": str(config.n_threads),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def gpu_facts() -> dict[str, str]:
    """Return the GPU's name, CUDA's version and the driver's; nothing where there is no GPU."""
    if not torch.cuda.is_available():
        return {}
    found = versions()
    return {"gpu": torch.cuda.get_device_name(), "cuda": found["cuda"], "driver": found["driver"]}


def versions() -> dict[str, str]:
    """Return the versions that a result depends on; the driver's where there is a GPU."""
    found = {
        "llmtrain": llmtrain.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    if torch.cuda.is_available():
        found["driver"] = driver_version()
    return found


def warn(message: str) -> None:
    """Say on stderr what a person should know of a run that goes on all the same."""
    with contextlib.suppress(OSError):
        print(redact(f"llmtrain: {message}"), file=sys.stderr)  # noqa: T201 - in a worker there is no other


class StopRequest:
    """The number of the signal that has asked the run to save and leave; 0 for none."""

    def __init__(self) -> None:
        self.number = 0

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.number = number


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM, SIGINT and what schedulers send into a request the loop reads between steps."""
    request = StopRequest()
    with handled(STOP_SIGNALS, request._note):
        yield request


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
