"""Cutting frames into overlapping square tiles, and joining what became of them.

B batch, C channels, T frames or latents, H height, W width. A tile starts every three quarters of a
tile, in whole latents; what it shares with the one before is blended linearly, above, then left.
"""

import sys
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiling:
    """Lengths in cells: what goes in counts latents or patches, what comes out is scaled."""

    size: int  # side of a tile going in
    stride: int
    out_stride: int
    out_overlap: int

    def cut(self, x_BCTHW: Tensor) -> list[list[Tensor]]:
        """Rows of tiles, as views. The last of a row or column may be as small as one cell."""
        rows, columns = self._runs(x_BCTHW.shape[-2], x_BCTHW.shape[-1])
        return [[x_BCTHW[..., row, column] for column in columns] for row in rows]

    def places(self, height: int, width: int) -> list[tuple[slice, slice]]:
        """Rows and columns of every tile of what is so large."""
        rows, columns = self._runs(height, width)
        return [(row, column) for row in rows for column in columns]

    def _runs(self, height: int, width: int) -> tuple[list[slice], list[slice]]:
        if height <= self.size and width <= self.size:
            return [slice(0, height)], [slice(0, width)]
        rows, columns = (
            [slice(start, min(side, start + self.size)) for start in range(0, side, self.stride)]
            for side in (height, width)
        )
        return rows, columns

    def join(self, tiles: list[list[Tensor]]) -> Tensor:
        """Blends in place, so that a tile meets its neighbours as they have been blended."""
        if len(tiles) == len(tiles[0]) == 1:
            return tiles[0][0]
        rows = []
        for i, row in enumerate(tiles):
            for j, tile in enumerate(row):
                if i > 0:
                    _blend(tiles[i - 1][j], tile, self.out_overlap, dim=-2)
                if j > 0:
                    _blend(row[j - 1], tile, self.out_overlap, dim=-1)
            # a tile's own overlap is cut off: its neighbours hold the blend
            kept = [tile[..., : self.out_stride, : self.out_stride] for tile in row]
            rows.append(torch.cat(kept, dim=-1))
        return torch.cat(rows, dim=-2)


def tiling(tile: int, cell: int, out_cell: int, space_stride: int) -> Tiling:
    """For tiles of `tile` pixels, cells of `cell` pixels going in and `out_cell` coming out."""
    if tile == 0:
        return Tiling(size=sys.maxsize, stride=sys.maxsize, out_stride=0, out_overlap=0)
    smallest = 4 * space_stride
    if tile < smallest or tile % space_stride:
        below = max(tile // space_stride * space_stride, smallest)
        raise ValueError(
            f"model.vae_tile={tile} cannot be cut into latents of {space_stride} pixels, a quarter "
            f"of them shared with the next tile; set it to {below} or {below + space_stride}, "
            "or to 0 for whole frames"
        )
    stride = tile // space_stride * 3 // 4 * space_stride
    return Tiling(
        size=tile // cell,
        stride=stride // cell,
        out_stride=stride // out_cell,
        out_overlap=(tile - stride) // out_cell,
    )


def _blend(before: Tensor, after: Tensor, overlap: int, dim: int) -> None:
    """Fade from the end of `before` into the start of `after`, written into `after`."""
    length = min(overlap, before.shape[dim], after.shape[dim])
    ramp = torch.arange(length, dtype=torch.float64, device=after.device) / length
    ramp = ramp[:, None] if dim == -2 else ramp
    start = after.narrow(dim, 0, length)
    end = before.narrow(dim, before.shape[dim] - length, length)
    # float32 factors and two roundings: the bits of a loop over rows with Python numbers
    faded = (end * (1 - ramp).float()).to(after.dtype)
    start.copy_(faded + (start * ramp.float()).to(after.dtype))
