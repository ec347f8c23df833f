"""A DiT, whole or a slice, with weights: from a checkpoint, or random ones that need none."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch

from .arch import WanArch
from .checkpoint import open_transformer
from .lora import Adapted, Adapter
from .random_weights import fill_random
from .wan import WanDiT, keep_float32
from .weights import load_module


def load_dit(
    path: Path | None,
    arch: WanArch,
    *,
    device: torch.device,
    dtype: torch.dtype,
    layers: range | None = None,
    with_embed: bool = True,
    with_head: bool = True,
    adapters: Sequence[Adapter] = (),
) -> WanDiT:
    """`path` is the file or folder that holds it; none: untrained weights, without adapters."""
    with torch.device("meta"):
        model = WanDiT(arch, layers, with_embed=with_embed, with_head=with_head)
    if path is None:
        fill_random(model, seed=0, device=device, dtype=dtype, keep_float32=keep_float32)
    else:
        weights = Adapted(open_transformer(path, arch), adapters)
        load_module(model, weights, device=device, dtype=dtype, keep_float32=keep_float32)
    return model.eval().requires_grad_(False)


@lru_cache(maxsize=64)
def count_bytes(arch: WanArch, dtype: torch.dtype) -> int:
    """What the weights of one whole DiT take on its device."""
    with torch.device("meta"):
        model = WanDiT(arch)
    sizes = (
        p.numel() * (4 if keep_float32(name) else dtype.itemsize)
        for name, p in model.named_parameters()
    )
    return sum(sizes)
