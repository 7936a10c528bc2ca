from collections.abc import Iterator

import pytest
import torch

from llmtrain.spec.config import ModelConfig


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums over threads differ in their last bits; one thread makes equal runs bitwise equal."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture
def tiny_model_config() -> ModelConfig:
    return ModelConfig(
        d_model=32,
        n_layers=2,
        d_head=16,
        ff_ratio=4.0,
        ff_multiple=8,
        activation="relu2",
        norm="rmsnorm",
        position="rope",
        rope_base=10000.0,
        qk_norm=False,
        tied_head=False,
        bias=False,
        dropout=0.0,
        init_std=0.02,
        init="fan_in",
        parametrization="standard",
        base_d_model=32,
    )
