"""Heads that look at what is near in the picture, or near in time: SVG's choice, head by head.

Both see a band round the diagonal: the spatial one with tokens latent after latent, the temporal
one with all latents of a place side by side. Which loses less is tried on a few queries at every
call.
B batch, L queries, S keys, H heads, D channels of a head, Q queries that are tried, R tiles of
queries, C tiles of keys.
"""

from dataclasses import dataclass
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
class Band:
    """An order of queries and of keys, the lists in these orders, and the way back."""

    q_order_L: Tensor
    k_order_S: Tensor
    q_place_L: Tensor  # where each query stands
    k_place_S: Tensor
    blocks: Blocks

    def rows(self, queries: Tensor) -> Tensor:
        """(queries, S) booleans: which keys these queries see."""
        mask_RC = self.blocks.mask()[0, 0]
        of_query = self.q_place_L[queries] // self.blocks.q_tile
        return mask_RC[of_query][:, self.k_place_S // self.blocks.k_tile]


@lru_cache(maxsize=8)
def bands(window: Window, share: float, device: torch.device) -> tuple[Band, Band]:
    """The spatial and the temporal one; the first tokens of either order are seen by all.

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
    indices = of_key * tokens + place, place * latents + of_key
    spatial, temporal = (
        _band(index.to(device), len(latent), width, tokens, window.tile) for index in indices
    )
    return spatial, temporal


def attend_spatiotemporal(
    q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, window: Window, share: float, backend: str
) -> Tensor:
    """Each head with the band that loses less; the result alone."""
    both = bands(window, share, q_BLHD.device)
    temporal_BH = choose_temporal(q_BLHD, k_BSHD, v_BSHD, both)
    out_BLHD = torch.empty_like(q_BLHD)
    for b, temporal_H in enumerate(temporal_BH.cpu()):
        for band, chosen_H in zip(both, (~temporal_H, temporal_H), strict=True):
            heads = chosen_H.nonzero()[:, 0].to(q_BLHD.device)
            if not len(heads):
                continue
            q = q_BLHD[b : b + 1, :, heads][:, band.q_order_L]
            k, v = (x[b : b + 1, :, heads][:, band.k_order_S] for x in (k_BSHD, v_BSHD))
            y_1LHD, _ = attend(q, k, v, band.blocks, backend=backend)
            out_BLHD[b, :, heads] = y_1LHD[0, band.q_place_L]
    return out_BLHD


def choose_temporal(
    q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, both: tuple[Band, Band]
) -> Tensor:
    """(B, H) booleans: heads that lose less with the temporal band, by mean square on some rows."""
    num_queries = q_BLHD.shape[1]
    step = max(1, num_queries // _TRIED)
    queries = torch.arange(step // 2, num_queries, step, device=q_BLHD.device)
    q, k, v = (x.float().transpose(1, 2) for x in (q_BLHD[:, queries], k_BSHD, v_BSHD))
    scores_BHQS = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    dense_BHQD = scores_BHQS.softmax(-1) @ v
    errors = []
    for band in both:
        seen_BHQS = scores_BHQS.masked_fill(~band.rows(queries), -torch.inf)
        errors.append((seen_BHQS.softmax(-1) @ v - dense_BHQD).square().mean((2, 3)))
    is_temporal_BH: Tensor = errors[1] < errors[0]
    return is_temporal_BH


def _band(index_S: Tensor, num_queries: int, width: float, sink: int, tile: int) -> Band:
    q_order, k_order = index_S[:num_queries].argsort(), index_S.argsort()
    q_starts, k_starts = (
        even_starts(len(order), tile).to(index_S.device) for order in (q_order, k_order)
    )
    (q_low, q_high), (k_low, k_high) = (
        (index_S[order[starts[:-1]]], index_S[order[starts[1:] - 1]])
        for order, starts in ((q_order, q_starts), (k_order, k_starts))
    )
    gap_RC = torch.maximum(q_low[:, None] - k_high, k_low - q_high[:, None])
    mask_RC = (gap_RC <= width) | (k_low < sink)
    blocks = Blocks.from_mask(mask_RC[None, None], q_starts, k_starts)
    return Band(q_order, k_order, q_order.argsort(), k_order.argsort(), blocks)
