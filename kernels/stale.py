"""Attention to what is seen now, and to the rest as it was some steps ago.

A refresh computes the seen lists and their complement, which together cost one dense pass, and
keeps the complement's part. Until the next one the seen lists alone are computed, and merged with
it: the weights follow the fresh log-sum-exp. The published rule (Re-ttention) keeps the share of
the seen part and what was missing instead, and lets the share grow by a fixed amount.
B batch, L queries, S keys, H heads, D channels of a head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import State, attend, merge
from .blocks import Blocks

_GROWTH = 0.04  # of the share, at each step after the first: Re-ttention's, chosen by hand


@dataclass(frozen=True, eq=False)
class Rest:
    """The complement's part at a refresh, to be merged."""

    seen: Blocks
    out_BLHD: Tensor
    lse_BHL: Tensor

    def reuse(
        self, q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, steps: int, backend: str
    ) -> Tensor:
        """`steps` after the refresh."""
        previous = self.out_BLHD, self.lse_BHL
        return attend(q_BLHD, k_BSHD, v_BSHD, self.seen, previous, backend)[0]

    @property
    def num_bytes(self) -> int:
        return self.out_BLHD.nbytes + self.lse_BHL.nbytes


@dataclass(frozen=True, eq=False)
class Residual:
    """What the seen part was short of at a refresh, and its share: the published rule."""

    seen: Blocks
    missing_BLHD: Tensor
    share_BLH1: Tensor

    def reuse(
        self, q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, steps: int, backend: str
    ) -> Tensor:
        out_BLHD, _ = attend(q_BLHD, k_BSHD, v_BSHD, self.seen, backend=backend)
        share_BLH1 = self.share_BLH1 + _GROWTH * (steps - 1)
        return (out_BLHD.float() * share_BLH1 + self.missing_BLHD.float()).to(q_BLHD.dtype)

    @property
    def num_bytes(self) -> int:
        return self.missing_BLHD.nbytes + self.share_BLH1.nbytes


def refresh(
    q_BLHD: Tensor,
    k_BSHD: Tensor,
    v_BSHD: Tensor,
    seen: Blocks,
    rest: Blocks,
    backend: str,
    published: bool = False,
) -> tuple[Tensor, Rest | Residual]:
    """Attention to everything, and what to keep of it. `rest` is the complement of `seen`."""
    near: State = attend(q_BLHD, k_BSHD, v_BSHD, seen, backend=backend)
    far: State = attend(q_BLHD, k_BSHD, v_BSHD, rest, backend=backend)
    out_BLHD, lse_BHL = merge([near, far])
    if not published:
        return out_BLHD, Rest(seen, *far)
    seen_share = torch.where(near[1] == -torch.inf, 0.0, (near[1] - lse_BHL).exp())
    share_BLH1 = seen_share.transpose(1, 2)[..., None]
    missing = (out_BLHD.float() - share_BLH1 * near[0].float()).to(q_BLHD.dtype)
    return out_BLHD, Residual(seen, missing, share_BLH1)
