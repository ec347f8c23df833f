"""A window's tokens shared by several ranks in training: each has a part of them, or of the heads.

Between layers a rank has a run of tokens with all heads, inside self-attention all tokens with some
of the heads. Every rank embeds the window, and gets all tokens back for the head, so that a loss
is the same on all of them, and the mean of their gradients is the gradient.

B batch, L tokens, H heads, D channels of a head or width, N ranks.
"""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor

from ..kernels.attention import attend_dense
from ..kernels.rope import rotary_table, rotate
from ..models.arch import WanArch
from ..models.protocol import DiTState, Modulation
from ..models.wan import WanDiT


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
        own = slice(*(tokens_BLD.shape[1] * i // self._num for i in (self._rank, self._rank + 1)))
        splits, device = model.arch.head_splits, tokens_BLD.device
        table_LC = rotary_table(window.times, window.height, window.width, splits, device)[own]
        cut = replace(
            state,
            tokens_BLD=tokens_BLD[:, own],
            modulation=_cut_modulation(state.modulation, tokens_BLD.shape[1], own),
        )
        cut = model.run_layers(cut, range(model.num_layers), None, partial(self._attend, table_LC))
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
        parts = rearrange(x_BLHD, "b l (n h) d -> n b l h d", n=self._num)
        return rearrange(self._exchange(parts), "n b l h d -> b (n l) h d")

    def to_tokens(self, x_BLHD: Tensor) -> Tensor:
        """All tokens with some heads to a run of tokens with all."""
        parts = rearrange(x_BLHD, "b (n l) h d -> n b l h d", n=self._num)
        return rearrange(self._exchange(parts), "n b l h d -> b l (n h) d")

    def gather(self, x_BLD: Tensor) -> Tensor:
        parts = [torch.empty_like(x_BLD) for _ in range(self._num)]
        dist.all_gather(parts, x_BLD.contiguous(), group=self._group)
        return torch.cat(parts, dim=1)

    def own_part(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.chunk(self._num, dim=1)[self._rank]

    @property
    def num(self) -> int:
        return self._num

    def _exchange(self, parts_NBLHD: Tensor) -> Tensor:
        sent = parts_NBLHD.contiguous()
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=self._group)
        return received

    def _check(self, arch: WanArch, num_tokens: int) -> None:
        if num_tokens % self._num:
            raise ValueError(
                f"run.sequence_ranks={self._num} cannot share {num_tokens} tokens evenly; set it "
                "to a divisor of that, or change data.frames, data.height or data.width"
            )
        check_heads(arch, self._num)


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


def _cut_modulation(modulation: Modulation, num_tokens: int, own: slice) -> Modulation:
    """Rows of the own tokens, in the longest runs that both cuts allow."""
    if modulation.index_BF is None:
        return modulation
    run = num_tokens // modulation.index_BF.shape[1]
    shared = math.gcd(run, own.stop - own.start)
    index_BF = modulation.index_BF.repeat_interleave(run // shared, dim=1)
    return replace(modulation, index_BF=index_BF[:, own.start // shared : own.stop // shared])
