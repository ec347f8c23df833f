"""Who attends to whom in a stage: lists by the configured builder, and what later steps reuse.

B batch, L queries, S keys, H heads, D channels of a head.
"""

from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from ..configs.attention import AttentionConfig
from ..kernels.attention import attend
from ..kernels.blocks import Blocks
from ..kernels.pooled import pooled
from ..kernels.spatiotemporal import attend_spatiotemporal
from ..kernels.stale import Residual, Rest, refresh
from ..kernels.static_lists import local, radial, tile_window
from ..kernels.tiles import Window
from ..models.protocol import TokenOrder, WindowShape
from .tasks import Task

# what a window must have in common with a later one that uses what was kept of it: the expert, the
# latents in the video, also of what it reads, the order of tokens, and the shape of queries
_Like = tuple[int, tuple[tuple[int, int], ...], TokenOrder, torch.Size]


@dataclass(frozen=True, eq=False)
class Kept:
    """Of one layer and pass of the blocks that a window writes."""

    step: int  # when it was made
    like: _Like
    part: Rest | Residual


@dataclass
class SparseAttention:
    """One stage's, for as long as a render runs."""

    config: AttentionConfig
    num_layers: int  # of the whole model
    num_steps: int
    _kept: dict[tuple[tuple[int, ...], int, int], Kept] = field(default_factory=dict)

    def order(self, task: Task) -> TokenOrder:
        """Of a window's tokens: the same in every layer, and for all that caches bring."""
        cached = bool(task.reads or task.stores)
        return TokenOrder(self.config.order, by_latent=cached, tile=self.config.tile)

    def window(
        self, task: Task, passing: int, shape: WindowShape, expert: int = 0
    ) -> "WindowAttention":
        return WindowAttention(self, task, passing, shape, expert)

    def free(self, task: Task) -> None:
        """Let go of what was kept for blocks that are finished."""
        done = set(task.finishes)
        for key in [key for key in self._kept if done.intersection(key[0])]:
            del self._kept[key]

    def num_bytes(self) -> int:
        return sum(kept.part.num_bytes for kept in list(self._kept.values()))

    def find(self, key: tuple[tuple[int, ...], int, int]) -> Kept | None:
        return self._kept.get(key)

    def keep(self, key: tuple[tuple[int, ...], int, int], kept: Kept) -> None:
        self._kept[key] = kept


class WindowAttention:
    """How the tokens of one pass of one task see each other."""

    def __init__(
        self, sparse: SparseAttention, task: Task, passing: int, shape: WindowShape, expert: int
    ) -> None:
        self._sparse, self._config = sparse, sparse.config
        self._shape, self.passing, self._expert = shape, passing, expert
        self.listed: dict[int, Tensor] = {}  # by layer: how long lists are, where heads differ
        self._blocks = tuple(part.block for part in task.written)
        self._spans = task.spans
        # the noisiest block decides; a pass for keys and values alone is the last step
        self._step = min((part.step for part in task.written), default=sparse.num_steps - 1)

    @property
    def reads_inputs(self) -> bool:
        return self._config.reads_inputs

    @property
    def backend(self) -> str:
        return self._config.backend

    def lists(self, layer: int) -> Blocks | None:
        """Where they follow from places alone; none: every token sees every other."""
        assert not self.reads_inputs
        return None if self.is_dense(layer) else self._static(torch.device("cpu"))

    def is_dense(self, layer: int) -> bool:
        """Whether this step or layer is in the share that stays dense."""
        steps, layers = self._config.dense_shares
        return (
            self._config.builder == "dense"
            or self._step < steps * self._sparse.num_steps - 1e-9
            or layer < layers * self._sparse.num_layers - 1e-9
        )

    def __call__(self, layer: int, q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
        """Of queries and keys that are turned to their places."""
        backend, builder = self._config.backend, self._config.builder
        if self.is_dense(layer):
            return attend(q_BLHD, k_BSHD, v_BSHD, backend=backend)[0]
        if builder == "spatiotemporal":
            window, share = self._window(), self._config.band
            return attend_spatiotemporal(q_BLHD, k_BSHD, v_BSHD, window, share, backend)
        if builder == "pooled":
            config = self._config
            blocks = pooled(q_BLHD, k_BSHD, self._window(), config.keep, config.mass)
            if config.mass is not None:
                self.listed[layer] = blocks.counts_BHR
        else:
            blocks = self._static(q_BLHD.device)
        if builder.startswith("stale"):
            return self._stale(layer, q_BLHD, k_BSHD, v_BSHD, blocks)
        return attend(q_BLHD, k_BSHD, v_BSHD, blocks, backend=backend)[0]

    def _stale(
        self, layer: int, q_BLHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, seen: Blocks
    ) -> Tensor:
        """By what was kept of the same window, if that is not too old."""
        key, backend = (self._blocks, self.passing, layer), self._config.backend
        kept = self._sparse.find(key)
        now = self._expert, self._spans, self._shape.order, q_BLHD.shape
        if (
            kept is not None
            and kept.like == now
            and 0 < self._step - kept.step < self._config.refresh
        ):
            steps = self._step - kept.step
            return kept.part.reuse(q_BLHD, k_BSHD, v_BSHD, steps, backend)
        rest = _complement(self._config, self._window(), q_BLHD.device)
        published = self._config.builder == "stale-published"
        out_BLHD, part = refresh(q_BLHD, k_BSHD, v_BSHD, seen, rest, backend, published)
        if self._blocks and self._step + 1 < self._sparse.num_steps:
            self._sparse.keep(key, Kept(self._step, now, part))
        return out_BLHD

    def _static(self, device: torch.device) -> Blocks:
        return static_lists(self._config, self._window(), device)

    def _window(self) -> Window:
        return window_of(self._shape)


def window_of(shape: WindowShape) -> Window:
    return Window(
        times=shape.times,
        context_times=shape.context_times,
        height=shape.height,
        width=shape.width,
        order=shape.order.name,
        by_latent=shape.order.by_latent,
        tile=shape.order.tile,
    )


@lru_cache(maxsize=16)
def static_lists(config: AttentionConfig, window: Window, device: torch.device) -> Blocks:
    """Lists that follow from where tokens stand alone."""
    if config.builder == "tile-window":
        time, height, width = config.window
        blocks = tile_window(window, (time, height, width))
    elif config.builder == "radial":
        blocks = radial(window, config.decay)
    else:
        blocks = local(window, config.seen_radius)
    return blocks.to(device)


@lru_cache(maxsize=16)
def _complement(config: AttentionConfig, window: Window, device: torch.device) -> Blocks:
    return static_lists(config, window, device).complement()
