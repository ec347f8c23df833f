"""Lists that follow from where tokens stand alone: the same for all heads, steps and inputs.

R tiles of queries, C tiles of keys.
"""

from functools import lru_cache

import torch
from torch import Tensor

from .blocks import Blocks
from .tiles import Tiles, Window, gaps, tiles_of

_RADIAL_FLOOR = 128  # tokens: the published block, below which a diagonal gets no narrower
_DENSE_COLUMN = 1 / 3  # of a block's rows
_DENSE_BLOCK = 0.6  # of its columns that hold anything


@lru_cache(maxsize=16)
def tile_window(window: Window, reach: tuple[int, int, int]) -> Blocks:
    """STA: a box of tiles round each tile, moved inwards at the borders, so that all are as many
    where no times are left out between them.

    `reach`: tokens that the box measures in time, height and width, rounded up to whole tiles.
    """
    queries, keys = tiles_of(window)
    mask_RC = torch.ones(queries.num, keys.num, dtype=torch.bool)
    for axis in range(3):
        low, high = keys.low_N3[:, axis], keys.high_N3[:, axis]
        size, begin, end = int((high - low).min()) + 1, int(low.min()), int(high.max()) + 1
        span = -(-reach[axis] // size)
        first = queries.low_N3[:, axis] - span // 2 * size
        first = first.clamp(max=end - span * size).clamp(min=begin)[:, None]
        mask_RC &= (high[None] >= first) & (low[None] < first + span * size)
    return _blocks(mask_RC, queries, keys)


@lru_cache(maxsize=16)
def local(window: Window, radius: int) -> Blocks:
    """CLEAR: whatever tiles a disc of so many tokens round a token may touch, at every time."""
    queries, keys = tiles_of(window)
    _, rows, columns = gaps(queries, keys).unbind(-1)
    radius = min(radius, window.height + window.width)  # a square that fits an int64
    return _blocks(rows**2 + columns**2 <= radius**2, queries, keys)


@lru_cache(maxsize=16)
def radial(window: Window, decay: float) -> Blocks:
    """Radial attention: the further apart in time, the narrower the diagonal between two latents.

    Its width halves with each doubling of the distance; where it would be narrower than a block,
    fewer distances are kept instead. The first latent is seen by all. In the raster's order.
    """
    assert window.order == "raster"
    queries, keys = tiles_of(window)
    tokens, times = window.height * window.width, window.times + window.context_times
    mask_RC = torch.zeros(queries.num, keys.num, dtype=torch.bool)
    of_rows = [_overlapping(queries, i, tokens) for i in range(len(window.times))]
    of_columns = [_overlapping(keys, j, tokens) for j in range(len(times))]
    known: dict[object, Tensor] = {}  # latents meet blocks in a few ways only
    for (rows, row_edges), query_time in zip(of_rows, window.times, strict=True):
        for (columns, column_edges), key_time in zip(of_columns, times, strict=True):
            sink = key_time == min(times)
            width = tokens if sink else _radial_width(abs(query_time - key_time), tokens, decay)
            if width is None:
                continue
            key = row_edges, column_edges, width
            if key not in known:
                known[key] = _dense_blocks(*key)
            mask_RC[rows, columns] |= known[key]
    return _blocks(mask_RC, queries, keys)


def _radial_width(distance: int, tokens: int, decay: float) -> float | None:
    """Of the diagonal between two latents; none: this distance is left out."""
    if distance <= 1:
        return tokens
    length: float = 2 ** tokens.bit_length() / 2 ** distance.bit_length()
    if length < _RADIAL_FLOOR and distance % int(_RADIAL_FLOOR / length):
        return None
    return max(length * decay, _RADIAL_FLOOR)


def _overlapping(tiles: Tiles, latent: int, tokens: int) -> tuple[slice, tuple[int, ...]]:
    """The tiles with tokens of a latent, and where they cut it: edges from its start to its end."""
    starts = tiles.starts.long() - latent * tokens
    first = int(torch.searchsorted(starts, 0, right=True)) - 1
    last = int(torch.searchsorted(starts, tokens))
    return slice(first, last), tuple(starts[first : last + 1].clamp(0, tokens).tolist())


def _dense_blocks(
    row_edges: tuple[int, ...], column_edges: tuple[int, ...], width: float
) -> Tensor:
    """Blocks that a diagonal fills enough of: most columns it touches, a third of their rows."""
    rows, columns = torch.tensor(row_edges), torch.tensor(column_edges)
    column = torch.arange(column_edges[-1])
    low = torch.maximum(rows[:-1, None], (column - width).ceil()[None])
    high = torch.minimum(rows[1:, None] - 1, (column + width).floor()[None])
    count = (high - low + 1).clamp(min=0)
    # rows are those it has in this latent: few where a tile is short, or lies across two
    least = _DENSE_COLUMN * rows.diff()[:, None]
    touched_RC, dense_RC = (_per_tile(chosen, columns) for chosen in (count > 0, count > least))
    return dense_RC > _DENSE_BLOCK * touched_RC


def _per_tile(chosen_RL: Tensor, edges: Tensor) -> Tensor:
    """How many of each tile's columns are chosen."""
    sums = torch.nn.functional.pad(chosen_RL.cumsum(1), (1, 0))
    return sums[:, edges[1:]] - sums[:, edges[:-1]]


def _blocks(mask_RC: Tensor, queries: Tiles, keys: Tiles) -> Blocks:
    return Blocks.from_mask(mask_RC[None, None], queries.starts, keys.starts)
