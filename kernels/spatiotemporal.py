"""Heads that look at what is near in the picture, or near in time: SVG's choice, head by head.

Both see a band round the diagonal: the spatial one with tokens latent after latent, the temporal
one with all latents of a place side by side. Which loses less is tried on a few queries at every
call.
B batch, L queries, S keys, H heads, D channels of a head, Q queries that are tried, R tiles of
queries, C tiles of keys.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from math import sqrt

import torch
from torch import Tensor

from .attention import attend
from .blocks import Blocks, even_starts
from .order import raster_places
from .tiles import Window

_TRIED = 32  # queries, evenly spaced: the same for every device and every way a model is cut


@dataclass(frozen=True, eq=False)
class Bands:
    """Of the spatial and the temporal one: orders of queries and keys, the ways back, the lists."""

    q_order_2L: Tensor
    k_order_2S: Tensor
    q_place_2L: Tensor  # where each query stands
    k_place_2S: Tensor
    blocks: Blocks  # (1, 2, ...): tiles are the same in both orders

    def rows(self, queries: Tensor) -> Tensor:
        """(2, queries, S) booleans: which keys these queries see."""
        of_query_2Q = self.q_place_2L[:, queries] // self.blocks.q_tile
        of_key_2S = self.k_place_2S // self.blocks.k_tile
        which = torch.arange(2, device=queries.device)[:, None, None]
        return self.blocks.mask()[0][which, of_query_2Q[:, :, None], of_key_2S[:, None]]

    def chosen(self, which_BH: Tensor) -> Blocks:
        """The lists of every sample's heads; 0: spatial, 1: temporal."""
        blocks = self.blocks
        columns_BHRK, counts_BHR = blocks.columns_BHRK[0, which_BH], blocks.counts_BHR[0, which_BH]
        return replace(blocks, columns_BHRK=columns_BHRK, counts_BHR=counts_BHR)


@lru_cache(maxsize=8)
def bands(window: Window, share: float, device: torch.device) -> Bands:
    """The first tokens of either order are seen by all.

    `share` of all pairs would lie in the band of a square without that sink.
    """
    assert window.order == "raster"
    times = window.times + window.context_times
    latents, tokens = len(times), window.height * window.width
    width = latents * (1 - sqrt(1 - share)) * tokens
    latent, y, x = raster_places(window.own)
    context, context_y, context_x = raster_places(window.context)
    rank = torch.tensor(times).argsort().argsort()
    of_key = rank[torch.cat([latent, context + len(window.times)])]
    place = torch.cat([y, context_y]) * window.width + torch.cat([x, context_x])
    index_2S = torch.stack([of_key * tokens + place, place * latents + of_key])
    index_2L = index_2S[:, : len(latent)]
    q_order_2L, k_order_2S = index_2L.argsort(), index_2S.argsort()
    (q_starts, q_low_2R, q_high_2R), (k_starts, k_low_2C, k_high_2C) = (
        _tiled(index, window.tile) for index in (index_2L, index_2S)
    )
    gap_2RC = torch.maximum(
        q_low_2R[:, :, None] - k_high_2C[:, None], k_low_2C[:, None] - q_high_2R[:, :, None]
    )
    mask_2RC = (gap_2RC <= width) | (k_low_2C < tokens)[:, None]
    return Bands(
        q_order_2L.to(device),
        k_order_2S.to(device),
        q_order_2L.argsort().to(device),
        k_order_2S.argsort().to(device),
        Blocks.from_mask(mask_2RC[None], q_starts, k_starts).to(device),
    )


def attend_spatiotemporal(
    q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, window: Window, share: float, backend: str
) -> Tensor:
    """Each head with the band that loses less; the result alone. Nothing waits for the device."""
    both = bands(window, share, q_BLHD.device)
    temporal_BH = choose_temporal(q_BLHD, k_BSHD, v_BSHD, both)
    which_BH = temporal_BH.long()
    q_order_BLH, k_order_BSH, q_place_BLH = (
        order[which_BH].transpose(1, 2)
        for order in (both.q_order_2L, both.k_order_2S, both.q_place_2L)
    )
    q = _in_order(q_BLHD, q_order_BLH)
    k, v = (_in_order(x, k_order_BSH) for x in (k_BSHD, v_BSHD))
    y_BLHD, _ = attend(q, k, v, both.chosen(which_BH), backend=backend)
    return _in_order(y_BLHD, q_place_BLH)


def choose_temporal(q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, both: Bands) -> Tensor:
    """(B, H) booleans: heads that lose less with the temporal band, by mean square on some rows."""
    num_queries = q_BLHD.shape[1]
    step = max(1, num_queries // _TRIED)
    queries = torch.arange(step // 2, num_queries, step, device=q_BLHD.device)
    q, k, v = (x.float().transpose(1, 2) for x in (q_BLHD[:, queries], k_BSHD, v_BSHD))
    scores_BHQS = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    dense_BHQD = scores_BHQS.softmax(-1) @ v
    errors = []
    for seen_QS in both.rows(queries):
        seen_BHQS = scores_BHQS.masked_fill(~seen_QS, -torch.inf)
        errors.append((seen_BHQS.softmax(-1) @ v - dense_BHQD).square().mean((2, 3)))
    is_temporal_BH: Tensor = errors[1] < errors[0]
    return is_temporal_BH


def _in_order(x_BLHD: Tensor, order_BLH: Tensor) -> Tensor:
    """Every head's tokens in the order of its band."""
    batch, _, heads, _ = x_BLHD.shape
    sample_B11 = torch.arange(batch, device=x_BLHD.device)[:, None, None]
    return x_BLHD[sample_B11, order_BLH, torch.arange(heads, device=x_BLHD.device)]


def _tiled(index_2L: Tensor, tile: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where tiles start, and the lowest and the highest index in each, in either order."""
    starts = even_starts(index_2L.shape[1], tile)
    rising_2L = index_2L.sort().values
    return starts, rising_2L[:, starts[:-1]], rising_2L[:, starts[1:] - 1]
