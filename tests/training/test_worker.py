"""A worker on a GPU, as far as a CPU can tell: its errors, its device's peak; a CPU's bfloat16."""

import dataclasses

import pytest
import torch

from llmtrain.spec.errors import DeviceLostError
from llmtrain.training import memory, runtime
from llmtrain.training.runtime import peak_flops
from llmtrain.training.worker import work


@pytest.mark.parametrize("on_gpu", [True, False])
def test_an_error_of_torch_on_a_gpu_is_the_last_of_its_process(
    make, text_files, tmp_path, monkeypatch, on_gpu
):
    def fail(*_args, **_options):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore of it")

    monkeypatch.setattr(memory, "train_in_memory", fail)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: on_gpu)
    config = make({"data.paths": [str(text_files)], "data.root": str(tmp_path)})
    expected = DeviceLostError if on_gpu else RuntimeError
    with pytest.raises(expected, match="an illegal memory access was encountered") as caught:
        work({"config": dataclasses.asdict(config)}, lambda _progress: None)
    assert ("more" in str(caught.value)) == (not on_gpu)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H200", 989.5),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA H200 MIG 1g.18gb", None),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A10", None),
    ],
)
def test_the_peak_of_a_gpu_is_that_of_its_own_name(make, monkeypatch, name, tflops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: name)
    found = peak_flops(torch.device("cuda"), make().runtime)
    assert found == (None if tflops is None else tflops * 1e12)


@pytest.mark.parametrize(
    ("dtype", "flags", "n_lines"),
    [
        ("bfloat16", {"avx2", "fma"}, 1),
        ("bfloat16", {"avx2", "avx512_bf16"}, 0),
        ("bfloat16", set(), 0),  # no x86: its flags have other names
        ("float32", {"avx2", "fma"}, 0),
    ],
)
def test_bfloat16_on_a_processor_without_it_is_said_once(
    make, monkeypatch, capfd, dtype, flags, n_lines
):
    runtime._warn_of_bfloat16.cache_clear()
    monkeypatch.setattr(runtime, "cpu_flags", lambda: frozenset(flags))
    config = make({"runtime.dtype": dtype, "runtime.device": "cpu"})
    for _ in range(2):
        assert runtime.pick_device(config.runtime) == torch.device("cpu")
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == n_lines
    assert all("use runtime.dtype=float32" in line for line in lines)


def test_the_flags_of_this_processor_are_words():
    flags = runtime.cpu_flags()
    assert all(flag.split() == [flag] for flag in flags)
    if runtime.platform.machine() == "x86_64":
        assert "sse2" in flags
