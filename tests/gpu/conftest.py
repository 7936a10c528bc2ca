"""What all tests on a GPU share."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _float32_products(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No TF32: two sides that must agree may take different kernels, which round differently."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "set_float32_matmul_precision", lambda _precision: None)
        yield
    torch.set_float32_matmul_precision(before)
