"""A slice of consecutive layers on one device or one of several, and what passes between slices.

B batch, C channels, T latents, H height, W width, S text tokens, N image tokens, D width.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..models.protocol import DiTState, TokenOrder, VideoDiT
from ..models.wan import WanDiT
from .cache import KeyValueCache
from .sequence import Share
from .snapshot import CacheKey, Piece, Place
from .sparse import SparseAttention
from .tasks import Entry, Task

_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A task's window as the first stage reads it. Each pass has its own text, and its batch."""

    latents_BCTHW: Tensor
    timesteps_BT: Tensor  # on the host
    texts_BSD: tuple[Tensor, ...]  # one per pass through the model
    image_BND: Tensor | None
    expert: int
    causal_latents: int
    fps: int


def split_passes(inputs: Inputs) -> list[Inputs]:
    """A window for each branch of guidance: the same latents, with the text of one pass each."""
    return [replace(inputs, texts_BSD=(text_BSD,)) for text_BSD in inputs.texts_BSD]


@dataclass(frozen=True, kw_only=True)
class Activation:
    """One pass of a task's window between two stages."""

    state: DiTState
    passing: int  # its number among those of the task
    is_last: bool
    expert: int


@dataclass(frozen=True, kw_only=True)
class Moved:
    """A block's latents after a step: what closes the ring."""

    block: int
    step: int  # the version they are now
    latents_BCTHW: Tensor


class Stage:
    """Consecutive layers, of one model or of two experts.

    A plain class: LocalChain and tests call it directly, an actor wraps it elsewhere. One thread
    runs tasks, in the one order the schedule gives.
    """

    def __init__(
        self,
        expert: Callable[[int], VideoDiT],
        layers: range,
        sparse: SparseAttention | None = None,
        device: torch.device = _CPU,
    ) -> None:
        """`sparse`: who attends to whom; none: every token of a window to every other."""
        self._expert = expert
        self._layers = layers
        self._sparse = sparse
        self._device = device
        self._cache = KeyValueCache()
        self._share: Share | None = None
        self.busy_s = 0.0  # in layers; of a GPU: until it was given its work

    def join(self, share: Share | None) -> None:
        """Run from now on a share of every window; none: all of it."""
        self._share = share

    @torch.inference_mode()
    def embed(self, task: Task, inputs: Inputs, passing: int) -> Activation:
        """First stage: latents to tokens."""
        text_BSD, image = inputs.texts_BSD[passing], inputs.image_BND
        batch = text_BSD.shape[0]
        state = self._expert(inputs.expert).embed(
            inputs.latents_BCTHW.expand(batch, -1, -1, -1, -1),
            inputs.timesteps_BT.expand(batch, -1),
            text_BSD,
            None if image is None else image.expand(batch, -1, -1),
            positions=task.positions,
            context_positions=task.context_positions,
            causal_latents=inputs.causal_latents,
            fps=inputs.fps,
            order=TokenOrder() if self._sparse is None else self._sparse.order(task),
        )
        return Activation(
            state=state if self._share is None else self._share.take(state),
            passing=passing,
            is_last=passing + 1 == len(inputs.texts_BSD),
            expert=inputs.expert,
        )

    @torch.inference_mode()
    def run(self, task: Task, x: Activation) -> Activation:
        """This stage's layers; what later windows read is kept, what nobody reads is freed."""
        began = time.monotonic()
        state = self._run(task, x)
        if x.is_last:
            self._cache.free(task)
            if self._sparse is not None:
                self._sparse.free(task)
        self.busy_s += time.monotonic() - began
        return replace(x, state=state)

    def skip(self, task: Task) -> None:
        """A task whose pass here is left out, as it is not guided."""
        if self._sparse is not None:
            self._sparse.free(task)

    @torch.inference_mode()
    def head(self, x: Activation) -> tuple[Tensor, ...]:
        """Last stage: velocities in float32, one per sample of the pass.

        Of several devices, the one where they come together has them, and the others none.
        """
        model = self._expert(x.expert)
        if self._share is None:
            velocity_BCTHW: Tensor | None = model.head(x.state)
        else:
            assert isinstance(model, WanDiT)
            velocity_BCTHW = self._share.head(model, x.state)
        return () if velocity_BCTHW is None else torch.split(velocity_BCTHW.float(), 1)

    def _run(self, task: Task, x: Activation) -> DiTState:
        model, state, attention = self._expert(x.expert), x.state, None
        if self._sparse is not None:
            attention = self._sparse.window(task, x.passing, state.window, x.expert)
        if self._share is None:
            cache = self._cache.window(task, x.passing)
            return model.run_layers(state, self._layers, cache, attend_tokens=attention)
        assert isinstance(model, WanDiT)
        shards, mine = self._share.shards(state.window), self._share.ring.rank
        cache = self._cache.window(task, x.passing, shards, mine)
        run = partial(self._share.run_layers, model, state, self._layers, cache)
        if attention is None:
            return run()
        if attention.reads_inputs:
            return run(attend_heads=attention)
        return run(attention.lists, backend=attention.backend)

    def pieces(self, passes: range) -> Iterator[tuple[CacheKey, Piece]]:
        """Keys and values that later windows read; `passes`: which of all passes it runs."""
        return self._cache.pieces(self._place, passes)

    def restore(
        self,
        entries: Iterable[Entry],
        whole: Mapping[CacheKey, tuple[Tensor, Tensor]],
        passes: range,
    ) -> None:
        """Hold these instead, as far as they are this stage's."""
        self._cache.restore(entries, whole, self._place, self._layers, passes, self._device)

    @property
    def _place(self) -> Place:
        return Place() if self._share is None else self._share.place

    def cache_bytes(self) -> int:
        kept = 0 if self._sparse is None else self._sparse.num_bytes()
        return self._cache.num_bytes() + kept
