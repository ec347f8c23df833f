"""Untrained weights that depend on a seed and on names alone."""

import math
import zlib
from collections.abc import Callable

import torch
from torch import nn


@torch.no_grad()
def fill_random(
    module: nn.Module,
    seed: int,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    keep_float32: Callable[[str], bool] = lambda name: False,
) -> None:
    """Fill a module that was built on the meta device; no global generator is touched.

    Every tensor has a generator of its own, seeded by its name, so a slice of a model has the bits
    of the whole; drawn in float32 on the CPU, so device and dtype only round.
    """
    made: dict[int, nn.Parameter] = {}  # tensors that two names share stay shared
    for owner, layer in module.named_modules():
        for leaf, old in list(layer.named_parameters(recurse=False)):
            name = f"{owner}.{leaf}" if owner else leaf
            if id(old) not in made:
                value = _draw(leaf, old.shape, zlib.crc32(f"{seed} {name}".encode()))
                kept = torch.float32 if keep_float32(name) else dtype
                made[id(old)] = nn.Parameter(value.to(device, kept), old.requires_grad)
            setattr(layer, leaf, made[id(old)])


def _draw(leaf: str, shape: torch.Size, seed: int) -> torch.Tensor:
    if leaf == "bias":
        return torch.zeros(shape)
    if leaf == "gamma" or len(shape) == 1:  # of a norm
        return torch.ones(shape)
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator) / math.sqrt(max(1, math.prod(shape[1:])))
