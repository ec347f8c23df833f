"""A window's tokens shared by several ranks in training: each has a part of them, or of the heads.

Between layers a rank has a run of tokens with all heads, inside self-attention all tokens with some
of the heads. Every rank embeds the window, and gets all tokens back for the head, so that a loss
is the same on all of them, and the mean of their gradients is the gradient.

B batch, L tokens, H heads, D channels of a head or width, N ranks.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..kernels.attention import attend_dense
from ..kernels.rope import rotary_table, rotate
from ..models.arch import WanArch
from ..models.protocol import DiTState
from ..models.wan import WanDiT
from .group import Parcel, Shape
from .heads import to_heads, to_tokens
from .shards import cut_tokens, own_part


class SequenceGroup:
    """The ranks that share one window."""

    def __init__(self, group: Any, rank: int, num: int) -> None:
        self._group, self._rank, self._num = group, rank, num

    def run_layers(self, model: WanDiT, state: DiTState) -> DiTState:
        """All layers of a window that stands alone, every rank with its run of tokens."""
        window, tokens_BLD = state.window, state.tokens_BLD
        self._check(model.arch, tokens_BLD.shape[1])
        assert not window.causal_latents, "a causal window is cut into runs, not into heads"
        assert not window.context_times, "training windows have no cache"
        own = cut_tokens(tokens_BLD.shape[1], self._num, 1)[self._rank]
        splits, device = model.arch.head_splits, tokens_BLD.device
        table_LC = rotary_table(window.times, window.height, window.width, splits, device)
        attend_window = partial(self._attend, table_LC[own.start : own.stop])
        cut = own_part(state, own)
        cut = model.run_layers(cut, range(model.num_layers), None, attend_window)
        whole_BLD: Tensor = _Gather.apply(cut.tokens_BLD, self)  # type: ignore[no-untyped-call]
        return replace(state, tokens_BLD=whole_BLD)

    def _attend(
        self, table_LC: Tensor, layer: int, q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor
    ) -> Tensor:
        apply: Any = _ToHeads.apply
        turned = rotate(q_BLHD, table_LC), rotate(k_BLHD, table_LC)
        some_heads = [apply(x_BLHD, self) for x_BLHD in (*turned, v_BLHD)]
        y_BLHD: Tensor = _ToTokens.apply(attend_dense(*some_heads), self)  # type: ignore[no-untyped-call]
        return y_BLHD

    def to_heads(self, x_BLHD: Tensor) -> Tensor:
        """A run of tokens with all heads to all tokens with some."""
        heads, lengths = self._even(x_BLHD.shape[2]), [x_BLHD.shape[1]] * self._num
        return to_heads([x_BLHD], heads, lengths, self._rank, self._swap)[0]

    def to_tokens(self, x_BLHD: Tensor) -> Tensor:
        """All tokens with some heads to a run of tokens with all."""
        heads = self._even(x_BLHD.shape[2] * self._num)
        lengths = [x_BLHD.shape[1] // self._num] * self._num
        return to_tokens(x_BLHD, heads, lengths, self._rank, self._swap)

    def gather(self, x_BLD: Tensor) -> Tensor:
        parts = [torch.empty_like(x_BLD) for _ in range(self._num)]
        dist.all_gather(parts, x_BLD.contiguous(), group=self._group)
        return torch.cat(parts, dim=1)

    def own_part(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.chunk(self._num, dim=1)[self._rank]

    @property
    def num(self) -> int:
        return self._num

    def _even(self, num_heads: int) -> list[range]:
        return cut_tokens(num_heads, self._num, 1)

    def _swap(self, pieces: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        parcel = Parcel(pieces, shapes, self._rank, pieces[0].device)
        dist.all_to_all_single(
            parcel.received, parcel.sent, parcel.sizes, parcel.sent_sizes, group=self._group
        )
        return parcel.opened()

    def _check(self, arch: WanArch, num_tokens: int) -> None:
        check_tokens(num_tokens, self._num)
        check_heads(arch, self._num)


def check_tokens(num_tokens: int, num: int) -> None:
    if num_tokens % num:
        raise ValueError(
            f"run.sequence_ranks={num} cannot share {num_tokens} tokens evenly; set it "
            "to a divisor of that, or change data.frames, data.height or data.width"
        )


def check_heads(arch: WanArch, num: int) -> None:
    if arch.num_heads % num:
        raise ValueError(
            f"run.sequence_ranks={num} cannot share the {arch.num_heads} heads of this model "
            f"evenly; set it to a divisor of {arch.num_heads}"
        )


def sequence_group(num: int) -> SequenceGroup | None:
    """This rank's, of `num` consecutive ones; none when each rank has windows of its own."""
    if num == 1:
        return None
    for first in range(0, dist.get_world_size(), num):
        members = list(range(first, first + num))
        group = dist.new_group(members)  # every rank must make every group
        if dist.get_rank() in members:
            mine = SequenceGroup(group, dist.get_rank() - first, num)
    return mine


class _ToHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BLHD: Tensor, group: SequenceGroup) -> Tensor:
        ctx.group = group
        return group.to_heads(x_BLHD)

    @staticmethod
    def backward(ctx: Any, grad_BLHD: Tensor) -> tuple[Tensor, None]:
        return ctx.group.to_tokens(grad_BLHD), None


class _ToTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BLHD: Tensor, group: SequenceGroup) -> Tensor:
        ctx.group = group
        return group.to_tokens(x_BLHD)

    @staticmethod
    def backward(ctx: Any, grad_BLHD: Tensor) -> tuple[Tensor, None]:
        return ctx.group.to_heads(grad_BLHD), None


class _Gather(torch.autograd.Function):
    """Backwards every rank has the same gradient of all tokens: their sum over ranks is N of it."""

    @staticmethod
    def forward(ctx: Any, x_BLD: Tensor, group: SequenceGroup) -> Tensor:
        ctx.group = group
        return group.gather(x_BLD)

    @staticmethod
    def backward(ctx: Any, grad_BLD: Tensor) -> tuple[Tensor, None]:
        return ctx.group.own_part(grad_BLD) * ctx.group.num, None
