"""Kernels of Triton start on the device of their tensors, whichever the thread's current one is."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

pytest.importorskip("triton", reason="needs Triton")

from longreel.kernels.attention_triton import attend_lists_triton
from longreel.kernels.blocks import all_blocks
from longreel.kernels.norm_triton import (
    gated_residual_triton,
    norm_modulate_triton,
    rms_norm_rotate_triton,
)
from longreel.kernels.pooled_triton import keep_triton, means_triton

X = torch.randn(1, 4, 16)
ROWS = torch.randn(1, 16)
HEADS = torch.randn(1, 4, 1, 16)
STARTS = torch.tensor([0, 4], dtype=torch.int32)
LAUNCHES = {
    "modulate": (X, lambda: norm_modulate_triton(X, ROWS, ROWS, None, 1e-6)),
    "residual": (X, lambda: gated_residual_triton(X, X, ROWS, None)),
    "rotate": (
        X,
        lambda: rms_norm_rotate_triton(X, nn.RMSNorm(16), torch.ones(4, 8, dtype=torch.cfloat), 1),
    ),
    "attend": (
        HEADS,
        lambda: attend_lists_triton(HEADS, HEADS, HEADS, all_blocks(4, 4, torch.device("cpu"))),
    ),
    "means": (HEADS, lambda: means_triton(HEADS, STARTS)),
    "keep": (HEADS, lambda: keep_triton(HEADS, 2, None)),
}


@pytest.mark.parametrize("launch", LAUNCHES)
def test_a_kernel_starts_on_the_device_of_its_tensors(monkeypatch, launch):
    entered = []

    @contextmanager
    def device_of(x):
        entered.append(x)
        yield

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    tensor, start = LAUNCHES[launch]
    with torch.no_grad():
        start()
    assert len(entered) == 1
    assert entered[0] is tensor
