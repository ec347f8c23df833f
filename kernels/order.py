"""The order of a window's tokens: as in the picture, or so that neighbours stand in one tile.

"tiles" are boxes of time, height and width where the grid is a whole number of a compact one, else
runs of tokens along a Hilbert curve.

L tokens, N tiles.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

_HOST = torch.device("cpu")
_LEAST = 7 / 8  # of a full tile: a smaller one would waste more of a kernel's
_LONGEST = 16  # side of a tile: neighbours are to stand in it, not rows


@dataclass(frozen=True)
class Grid:
    """A row of latents, and how its tokens are ordered."""

    latents: int
    height: int
    width: int
    order: str = "raster"
    by_latent: bool = False  # no tile reaches over two latents, so that they can be cached alone
    tile: int = 128  # most tokens of a tile

    @property
    def num_tokens(self) -> int:
        return self.latents * self.height * self.width


def find_tile(grid: Grid) -> tuple[int, int, int] | None:
    """The most compact tile that the grid is a whole number of; none: no exact one is of use."""
    times = (1,) if grid.by_latent else _divisors(grid.latents)
    found = [
        tile
        for tile in product(times, _divisors(grid.height), _divisors(grid.width))
        if _LEAST * grid.tile <= math.prod(tile) <= grid.tile and max(tile) <= _LONGEST
    ]
    best: tuple[int, int, int] | None = min(found, key=lambda tile: (sum(tile), tile), default=None)
    return best


@lru_cache(maxsize=64)
def permutation(grid: Grid, device: torch.device = _HOST) -> Tensor:
    """(L,) int64: which token of the raster stands at each place."""
    if device != _HOST:
        return permutation(grid).to(device)
    if grid.order == "raster" or not grid.num_tokens:
        return torch.arange(grid.num_tokens)
    t, y, x = raster_places(grid)
    if tile := find_tile(grid):
        tiles = [place // size for place, size in zip((t, y, x), tile, strict=True)]
        inside = [place % size for place, size in zip((t, y, x), tile, strict=True)]
        digits = [*zip(tiles, _counts(grid, tile), strict=True), *zip(inside, tile, strict=True)]
        key = torch.zeros_like(t)
        for digit, base in digits:
            key = key * base + digit
    elif grid.by_latent:
        key = (t << 2 * _bits(grid)) + hilbert((y, x), _bits(grid))
    else:
        key = hilbert((t, y, x), _bits(grid))
    return key.argsort()


@lru_cache(maxsize=64)
def inverse(grid: Grid, device: torch.device = _HOST) -> Tensor:
    """(L,) int64: where each token of the raster stands."""
    return permutation(grid).argsort().to(device)


@lru_cache(maxsize=64)
def tile_starts(grid: Grid) -> Tensor:
    """(N + 1,) int32: where each tile starts, then how many tokens there are."""
    tile = find_tile(grid) if grid.order == "tiles" else None
    size = math.prod(tile) if tile else grid.tile
    if not grid.by_latent:
        return torch.tensor([*range(0, grid.num_tokens, size), grid.num_tokens], dtype=torch.int32)
    of_latent = grid.height * grid.width
    starts = [
        latent * of_latent + start
        for latent in range(grid.latents)
        for start in range(0, of_latent, size)
    ]
    return torch.tensor([*starts, grid.num_tokens], dtype=torch.int32)


def raster_places(grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """Latent, row and column of every token of the raster."""
    axes = (torch.arange(n) for n in (grid.latents, grid.height, grid.width))
    t, y, x = (axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij"))
    return t, y, x


def hilbert(places: tuple[Tensor, ...], bits: int) -> Tensor:
    """How far along a Hilbert curve through a cube of 2**bits points a side (Skilling, 2004)."""
    axes = [place.clone() for place in places]
    for bit in range(bits - 1, 0, -1):
        low = (1 << bit) - 1
        for i in range(len(axes)):
            high = (axes[i] >> bit & 1).bool()
            swapped = torch.where(high, 0, (axes[0] ^ axes[i]) & low)
            axes[0] = torch.where(high, axes[0] ^ low, axes[0] ^ swapped)
            if i:
                axes[i] = axes[i] ^ swapped
    for i in range(1, len(axes)):
        axes[i] = axes[i] ^ axes[i - 1]
    flips = torch.zeros_like(axes[0])
    for bit in range(bits - 1, 0, -1):
        flips = torch.where((axes[-1] >> bit & 1).bool(), flips ^ ((1 << bit) - 1), flips)
    length = torch.zeros_like(flips)
    for bit in reversed(range(bits)):
        for axis in axes:
            length = length << 1 | ((axis ^ flips) >> bit & 1)
    return length


def _bits(grid: Grid) -> int:
    sides = (grid.height, grid.width) if grid.by_latent else (grid.latents, grid.height, grid.width)
    return max(1, (max(sides) - 1).bit_length())


def _counts(grid: Grid, tile: tuple[int, int, int]) -> tuple[int, int, int]:
    return grid.latents // tile[0], grid.height // tile[1], grid.width // tile[2]


def _divisors(number: int) -> list[int]:
    return [i for i in range(1, min(number, _LONGEST) + 1) if not number % i]
