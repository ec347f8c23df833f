"""How the attention kernel is laid out: parts of tiles, warps and stages, for a device's memory.

B batch, S keys, H heads, D channels of a head.
"""

from functools import cache

import torch
from torch import Tensor

MAX_TILE = 128
HOPPER = 227 * 1024  # bytes of shared memory that a program may have there


def launch_options(
    q_tile: int,
    k_tile: int,
    channels: int,
    *,
    item: int = 2,
    shared: int = HOPPER,
    descriptors: bool = False,
    even: bool = True,
) -> dict[str, int]:
    """By table, as autotuning needs a device: what benchmarks/attention.py --tune found on an H200.

    `item` bytes each, in `shared` bytes of an SM: queries, and keys and values of every stage, of
    which three hide that a list is read before what it names.
    """
    block_m, block_n, block_d = (max(16, _power_of_2(size)) for size in (q_tile, k_tile, channels))
    warps = 8 if block_m == MAX_TILE else 4
    if item > 2:  # float32 is for comparison: it multiplies without tensor cores, from registers
        block_n = min(block_n, 32)
    for_keys = (shared // item - block_m * block_d) // block_d  # in tokens
    while block_n > 16 and for_keys < 2 * 2 * block_n:
        block_n //= 2
    stages = min(3, max(1, for_keys // (2 * block_n)))
    if descriptors and even and block_m == k_tile == MAX_TILE and item == 2:
        # without masks two programs fit an SM: one multiplies while the other exponentiates
        block_n, warps, stages = 64, 4, 2
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_D": block_d,
        "DESCRIPTORS": descriptors,
        "num_warps": warps,
        "num_stages": stages,
    }


@cache
def shared_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return HOPPER
    properties = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)  # type: ignore[attr-defined]


def has_descriptors(device: torch.device) -> bool:
    """Whether tiles can come by tensor descriptor, without a thread that works out addresses."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def in_boxes(x_BSHD: Tensor) -> bool:
    """Whether tensor descriptors take it: tokens of all samples in one row, heads side by side."""
    batch, tokens, _, channels = x_BSHD.shape
    b, s, h, _ = x_BSHD.stride()
    bytes_each = x_BSHD.element_size()
    return (
        x_BSHD.numel() > 0
        and (batch == 1 or b == tokens * s)
        and h == channels == _power_of_2(channels)
        and s * bytes_each % 16 == x_BSHD.data_ptr() % 16 == 0
        and channels * bytes_each >= 16
    )


def _power_of_2(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()
