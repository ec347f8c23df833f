"""Tokens for heads and back: between a run of tokens with all heads, and all tokens with some.

B batch, L tokens, H heads, D channels of a head, N tensors.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .group import Shape

Swap = Callable[[Sequence[Tensor], Sequence[Shape]], list[Tensor]]  # as Group.swap
Heads = Sequence[Sequence[int]]  # of every rank


def to_heads(
    tensors_BLHD: Sequence[Tensor], heads: Heads, lengths: Sequence[int], rank: int, swap: Swap
) -> tuple[Tensor, ...]:
    """`heads` and `lengths`, tokens, of every rank: those of all ranks, with this one's heads."""
    batch, _, _, channels = tensors_BLHD[0].shape
    pieces = [torch.stack([_take(x, mine) for x in tensors_BLHD]) for mine in heads]
    shapes = [(len(tensors_BLHD), batch, length, len(heads[rank]), channels) for length in lengths]
    return torch.cat(swap(pieces, shapes), dim=2).unbind(0)


def to_tokens(
    x_BLHD: Tensor, heads: Heads, lengths: Sequence[int], rank: int, swap: Swap
) -> Tensor:
    """The way back: this rank's tokens, with all heads in their order."""
    batch, _, _, channels = x_BLHD.shape
    pieces = torch.split(x_BLHD, list(lengths), dim=1)
    shapes = [(batch, lengths[rank], len(theirs), channels) for theirs in heads]
    dealt_BLHD = torch.cat(swap(pieces, shapes), dim=2)
    order = [head for theirs in heads for head in theirs]
    return _take(dealt_BLHD, sorted(range(len(order)), key=order.__getitem__))


def _take(x_BLHD: Tensor, heads: Sequence[int]) -> Tensor:
    """A view where they are neighbours; a list as an index would wait for the device."""
    first, last = heads[0], heads[-1]
    if list(heads) == list(range(first, last + 1)):
        return x_BLHD[:, :, first : last + 1]
    return torch.cat([x_BLHD[:, :, head : head + 1] for head in heads], dim=2)
