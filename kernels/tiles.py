"""Where the tiles of a window lie: its queries', and its keys' with cached context behind them.

N tiles, L tokens.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .order import Grid, find_tile, permutation, raster_places, tile_starts


@dataclass(frozen=True)
class Window:
    """What lists are made from: where latents stand in time, and how tokens are ordered."""

    times: tuple[int, ...]  # of its own latents
    context_times: tuple[int, ...]  # of those whose keys a cache brings
    height: int
    width: int
    order: str
    by_latent: bool
    tile: int

    @property
    def own(self) -> Grid:
        return self._grid(len(self.times))

    @property
    def context(self) -> Grid:
        return self._grid(len(self.context_times))

    def _grid(self, latents: int) -> Grid:
        return Grid(latents, self.height, self.width, self.order, self.by_latent, self.tile)


@dataclass(frozen=True, eq=False)
class Tiles:
    """A row of tiles: where each starts, and the box of its tokens in time, row and column."""

    starts: Tensor  # (N + 1,) int32
    low_N3: Tensor
    high_N3: Tensor  # inclusive

    @property
    def num(self) -> int:
        return len(self.starts) - 1


@lru_cache(maxsize=16)
def tiles_of(window: Window) -> tuple[Tiles, Tiles]:
    """Of the queries, and of the keys."""
    own = _tiles(places(window, window.times, window.own), tile_starts(window.own))
    if not window.context_times:
        return own, own
    context = _tiles(
        places(window, window.context_times, window.context), tile_starts(window.context)
    )
    keys = Tiles(
        torch.cat([own.starts, context.starts[1:] + own.starts[-1]]),
        torch.cat([own.low_N3, context.low_N3]),
        torch.cat([own.high_N3, context.high_N3]),
    )
    return own, keys


def places(window: Window, times: tuple[int, ...], grid: Grid) -> Tensor:
    """(L, 3) time, row and column of every token, in their order."""
    t, y, x = raster_places(grid)
    position = torch.tensor(times, dtype=torch.int64)[t]
    return torch.stack([position, y, x], dim=1)[permutation(grid)]


def has_exact_tiles(window: Window) -> bool:
    return all(
        window.order == "tiles" and find_tile(grid) is not None
        for grid in (window.own, window.context)
        if grid.latents
    )


def gaps(queries: Tiles, keys: Tiles) -> Tensor:
    """(R, C, 3): how far boxes of tiles are apart in time, rows and columns; 0 where they meet."""
    below = queries.low_N3[:, None] - keys.high_N3[None]
    above = keys.low_N3[None] - queries.high_N3[:, None]
    return torch.maximum(below, above).clamp(min=0)


def _tiles(places_L3: Tensor, starts: Tensor) -> Tiles:
    """Boxes by segments: a tile's tokens are consecutive."""
    sizes = starts.diff().long()
    of_token = torch.repeat_interleave(torch.arange(len(sizes)), sizes)[:, None].expand(-1, 3)
    empty = places_L3.new_zeros(len(sizes), 3)
    low = empty.scatter_reduce(0, of_token, places_L3, "amin", include_self=False)
    high = empty.scatter_reduce(0, of_token, places_L3, "amax", include_self=False)
    return Tiles(starts, low, high)
