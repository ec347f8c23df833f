"""The Triton kernel beside the definition in Triton's interpreter, and compiled for Hopper."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from longreel.kernels import attention_triton
from longreel.kernels.attention import attend, attend_reference, empty_state
from longreel.kernels.attention_layout import HOPPER, in_boxes, launch_options
from longreel.kernels.attention_triton import attend_lists_triton
from longreel.kernels.blocks import Blocks, even_starts

SUPPORT = Path(__file__).parent.parent / "support"
# float32: other orders of the same sums; bfloat16: weights and result rounded once each, and the
# interpreter cuts bits off where a GPU rounds, so twice as much
TOLERANCE = {
    torch.float32: {"atol": 5e-6, "rtol": 0.0},
    torch.bfloat16: {"atol": 2e-2, "rtol": 2**-7},
}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp32", "bf16"])


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    """What the kernel does not write is NaN."""
    empty, empty_like = torch.empty, torch.empty_like
    monkeypatch.setattr(
        attention_triton.torch, "empty", lambda *a, **k: empty(*a, **k).fill_(torch.nan)
    )
    monkeypatch.setattr(
        attention_triton.torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(torch.nan)
    )


def _case(dtype, *, queries=29, keys=50, heads=2, channels=20, share=0.4, shared=False):
    """Ragged tiles of keys, an empty row, heads that lie anywhere in memory."""
    q = torch.randn(2, heads, queries, channels, dtype=dtype).transpose(1, 2)
    k, v = (torch.randn(2, keys, heads, channels, dtype=dtype) for _ in range(2))
    q_starts = even_starts(queries, 16)
    k_starts = torch.tensor([0, 3, 19, 30, 46, keys])
    many = (1, 1) if shared else (2, heads)
    mask = torch.rand(*many, len(q_starts) - 1, len(k_starts) - 1) < share
    mask[0, 0, 0] = False
    return (q, k, v), Blocks.from_mask(mask, q_starts, k_starts)


def _check(ours, expected, dtype):
    assert ours[0].dtype == expected[0].dtype
    torch.testing.assert_close(ours[0].float(), expected[0].float(), **TOLERANCE[dtype])
    torch.testing.assert_close(ours[1], expected[1], atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("shared", [False, True], ids=["per head", "shared"])
@DTYPES
def test_it_equals_the_definition(dtype, shared):
    tensors, blocks = _case(dtype, shared=shared)
    ours = attend_lists_triton(*tensors, blocks)
    _check(ours, attend_reference(*tensors, blocks), dtype)
    assert (ours[1][0, 0, :16] == -torch.inf).all()
    assert (ours[0][0, :16, 0] == 0).all()


@pytest.mark.parametrize("share", [0.0, 1.0])
@DTYPES
def test_lists_may_all_be_empty_or_full(dtype, share):
    tensors, blocks = _case(dtype, share=share)
    _check(attend_lists_triton(*tensors, blocks), attend_reference(*tensors, blocks), dtype)


@pytest.mark.parametrize(
    ("dtype", "previous"),
    [
        (torch.float32, "empty"),
        (torch.float32, "rest"),
        (torch.bfloat16, "rest"),
        (torch.bfloat16, "poisoned"),
    ],
    ids=str,
)
def test_a_previous_state_is_merged_in_the_epilogue(dtype, previous):
    tensors, blocks = _case(dtype)
    state = empty_state(tensors[0])
    if previous == "poisoned":
        state[0].fill_(torch.nan)
    elif previous == "rest":
        state = attend_reference(*tensors, blocks.complement(), state)
    ours = attend_lists_triton(*tensors, blocks, state)
    _check(ours, attend_reference(*tensors, blocks, state), dtype)
    if previous == "rest":
        dense, _ = attend_reference(*(x.float() for x in tensors))
        torch.testing.assert_close(ours[0], dense, **TOLERANCE[dtype])


def test_shards_merge_to_attention_over_all_lists():
    tensors, blocks = _case(torch.float32, shared=False)
    q, k, v = tensors
    state = empty_state(q)
    for keys in (range(0, 20), range(20, 21), range(21, 50)):  # tiles are cut
        part = blocks.cut(range(0, 29), keys)
        run = slice(keys.start, keys.stop)
        state = attend_lists_triton(q, k[:, run], v[:, run], part, state)
    _check(state, attend_reference(q, k, v, blocks, empty_state(q)), torch.float32)


def test_tiles_of_the_models_size():
    q, k, v = (torch.randn(1, 250, 1, 128) for _ in range(3))
    starts = even_starts(250, 120)
    blocks = Blocks.from_mask(torch.rand(1, 1, 3, 3) < 0.7, starts, starts)
    _check(attend(q, k, v, blocks, backend="triton"), attend_reference(q, k, v, blocks), q.dtype)


@pytest.mark.parametrize("descriptors", [False, True], ids=["pointers", "descriptors"])
@pytest.mark.parametrize("even", [False, True], ids=["uneven", "even"])
@pytest.mark.parametrize("block_n", [16, 32], ids=["halves", "whole"])
def test_every_layout_computes_the_same(block_n, even, descriptors):
    """Each three of the four choices meet: the dtype follows from the others."""
    dtype = torch.bfloat16 if (block_n == 16) ^ even ^ descriptors else torch.float32
    q, k, v = (torch.randn(2, 68, 2, 32, dtype=dtype) for _ in range(3))
    starts = even_starts(68, 32)  # the last has 4 tokens
    mask = torch.rand(2, 2, 3, 3) < 0.6
    mask[0, 0, 0] = False
    blocks = replace(Blocks.from_mask(mask, starts, starts), even=even)
    options = launch_options(32, 32, 32) | {"BLOCK_N": block_n, "DESCRIPTORS": descriptors}
    ours = attend_lists_triton(q, k, v, blocks, options=options)
    _check(ours, attend_reference(q, k, v, blocks), dtype)


def test_keys_that_no_descriptor_can_describe_come_by_pointers():
    q, k, v = (torch.randn(1, 36, 2, 32) for _ in range(3))
    assert in_boxes(k)
    assert in_boxes(torch.randn(1, 36, 6, 32)[:, :, 2:4])  # cut out of one projection
    turned = torch.randn(1, 2, 36, 32).transpose(1, 2)
    assert not in_boxes(turned)
    assert not in_boxes(k[..., :20])
    options = launch_options(32, 32, 32) | {"DESCRIPTORS": True}
    starts = even_starts(36, 32)
    blocks = Blocks.from_mask(torch.rand(1, 2, 2, 2) < 0.8, starts, starts)
    ours = attend_lists_triton(q, turned, v, blocks, options=options)
    _check(ours, attend_reference(q, turned, v, blocks), torch.float32)


@pytest.mark.parametrize("item", [2, 4])
@pytest.mark.parametrize("shared", [64 * 1024, 99 * 1024, 163 * 1024, HOPPER])
@pytest.mark.parametrize("tile", [16, 120, 128])
def test_a_program_takes_no_more_memory_than_the_device_has(tile, shared, item):
    options = launch_options(tile, tile, 128, item=item, shared=shared)
    a_stage = 2 * options["BLOCK_N"] * options["BLOCK_D"] * item
    queries = options["BLOCK_M"] * options["BLOCK_D"] * item
    assert queries + options["num_stages"] * a_stage <= shared or options["num_stages"] == 1
    if shared == HOPPER:
        assert options["num_stages"] == 3


def test_it_compiles_for_hopper_to_tensor_cores_that_are_fed_ahead():
    """No GPU takes part."""
    done = subprocess.run(
        [sys.executable, "-P", SUPPORT / "hopper.py"],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    built = [json.loads(line) for line in done.stdout.splitlines()]
    fused, attention, (*_, exact) = built[:5], built[5:-1], built[5:]
    assert len(attention) == 7
    assert all(kernel["spilled"] == 0 for kernel in fused)
    for kernel in attention:
        assert kernel["tensor cores"] >= 8
        assert kernel["async copies"] >= 6
        assert kernel["spilled"] <= 1024  # what is merged once, behind the loop
    assert all(kernel["shared"] <= HOPPER for kernel in built)
    assert exact["tensor cores"] == 0  # float32 is not rounded to ten bits
