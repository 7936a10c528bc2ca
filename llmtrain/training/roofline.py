"""What the machine itself can do, and what a call needs of a CPU's memory, measured on the spot."""

import time
from collections.abc import Callable
from itertools import accumulate
from statistics import median
from typing import Literal

import torch
from torch.profiler import ProfilerActivity, profile

DType = Literal["float32", "bfloat16"]
DTYPES: tuple[DType, ...] = ("float32", "bfloat16")

ROUNDS = 7
SIDE = {"cpu": 2048, "cuda": 8192}
"""Side of the square matmul: big enough for the best rate, a few seconds in all."""

CALLS = {"cpu": 1, "cuda": 20}
"""Calls between two waits: a GPU has finished one before the host has asked."""
KERNELS = 1000
"""Small kernels that are timed together."""


def ceilings(device: torch.device) -> dict[str, float]:
    """Return the machine's rates by name, which ends in the unit: products, copies, launches."""
    found = {f"matmul {dtype}, GFLOP/s": matmul_flops(device, dtype) / 1e9 for dtype in DTYPES}
    found["copy, GB/s"] = copy_bytes(device) / 1e9
    found["small kernel, us"] = kernel_seconds(device) * 1e6
    if device.type == "cuda":
        replayed = kernel_seconds(device, replayed=True)
        found["small kernel in a replayed graph, us"] = replayed * 1e6
    return found


def matmul_flops(device: torch.device, dtype: DType) -> float:
    """Return the FLOP/s of a big square matmul, on the threads that torch is set to."""
    side = SIDE[device.type]
    a, b = (torch.randn(side, side, device=device).to(getattr(torch, dtype)) for _ in range(2))
    return 2.0 * side**3 / _seconds(lambda: torch.mm(a, b), device)


def copy_bytes(device: torch.device) -> float:
    """Return the bytes per second that a copy of 256 MB reads and writes."""
    source = torch.zeros(2**26, device=device)
    target = torch.empty_like(source)
    return 2.0 * source.numel() * 4 / _seconds(lambda: target.copy_(source), device)


def kernel_seconds(device: torch.device, *, replayed: bool = False) -> float:
    """Return the seconds of a kernel that does next to nothing, many of them one after another.

    `replayed`: as parts of one CUDA graph, on a GPU alone; else the host starts each.
    """
    counter = torch.zeros(1, device=device)

    def count() -> None:
        for _ in range(KERNELS):
            counter.add_(1.0)

    action = count
    if replayed:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            count()
        action = graph.replay
    return _seconds(action, device) / KERNELS


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def held_memory(device: torch.device) -> int:
    """Return the bytes allocated on a GPU now; 0 of a CPU, which keeps no such count."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def peak_allocated(action: Callable[[], object]) -> int:
    """Return the bytes that a call has of a CPU's memory at its widest, besides what was there."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        action()
    assert seen.profiler is not None
    events = seen.profiler.kineto_results.events()
    memory = [event for event in events if event.name() == "[memory]"]
    held = accumulate(event.nbytes() for event in sorted(memory, key=lambda e: e.start_ns()))
    return max(held, default=0)


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    taken, calls = [], CALLS[device.type]
    for _ in range(ROUNDS):
        wait(device)
        begin = time.perf_counter()
        for _ in range(calls):
            action()
        wait(device)
        taken.append((time.perf_counter() - begin) / calls)
    return median(taken[1:])
