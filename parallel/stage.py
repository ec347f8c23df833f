"""A slice of consecutive layers on one device, and what passes between slices.

B batch, C channels, T latents, H height, W width, S text tokens, N image tokens, D width.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..models.protocol import DiTState, VideoDiT
from .cache import KeyValueCache
from .snapshot import CacheKey
from .tasks import Entry, Task


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
    """A task's window between two stages: a state per pass."""

    states: tuple[DiTState, ...]
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

    def __init__(self, expert: Callable[[int], VideoDiT], layers: range) -> None:
        self._expert = expert
        self._layers = layers
        self._cache = KeyValueCache()
        self.busy_s = 0.0  # in layers; of a GPU: until it was given its work

    @torch.inference_mode()
    def embed(self, task: Task, inputs: Inputs) -> Activation:
        """First stage: latents to tokens."""
        model, states = self._expert(inputs.expert), []
        for text_BSD in inputs.texts_BSD:
            batch = text_BSD.shape[0]
            image = inputs.image_BND
            states.append(
                model.embed(
                    inputs.latents_BCTHW.expand(batch, -1, -1, -1, -1),
                    inputs.timesteps_BT.expand(batch, -1),
                    text_BSD,
                    None if image is None else image.expand(batch, -1, -1),
                    positions=task.positions,
                    context_positions=task.context_positions,
                    causal_latents=inputs.causal_latents,
                    fps=inputs.fps,
                )
            )
        return Activation(states=tuple(states), expert=inputs.expert)

    @torch.inference_mode()
    def run(self, task: Task, x: Activation) -> Activation:
        """This stage's layers; what later windows read is kept, what nobody reads is freed."""
        began = time.monotonic()
        model = self._expert(x.expert)
        states = tuple(
            model.run_layers(state, self._layers, self._cache.window(task, i))
            for i, state in enumerate(x.states)
        )
        self._cache.free(task)
        self.busy_s += time.monotonic() - began
        return Activation(states=states, expert=x.expert)

    @torch.inference_mode()
    def head(self, x: Activation) -> tuple[Tensor, ...]:
        """Last stage: velocities in float32, one per sample of every pass."""
        model = self._expert(x.expert)
        velocities = [model.head(state).float() for state in x.states]
        return tuple(sample for batch in velocities for sample in torch.split(batch, 1))

    def held(self, passes: range) -> dict[CacheKey, tuple[Tensor, Tensor]]:
        """Keys and values that later windows read; `passes`: which of all passes it runs."""
        return self._cache.held(passes.start)

    def restore(
        self,
        entries: Iterable[Entry],
        held: Mapping[CacheKey, tuple[Tensor, Tensor]],
        passes: range,
    ) -> None:
        """Hold these instead, of the layers that are this stage's and the passes it runs."""
        self._cache.restore(entries, held, self._layers, passes)

    def cache_bytes(self) -> int:
        return self._cache.num_bytes()
