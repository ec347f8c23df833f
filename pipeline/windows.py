"""The first stage's side of the ring: latents of blocks in flight, put together to windows.

B batch, C channels, T latents, H height, W width, S text tokens.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..parallel.stage import Inputs, Moved
from ..parallel.tasks import Part, Task, WalkState
from .condition import Condition
from .guidance import GuidancePlan
from .levels import Levels
from .noise import window_noise
from .noise_pool import NoisePool
from .schedule import BlockSchedule

_PREFIX_STREAM = 1_000_000  # a step no solver reaches: the noise on clean prefixes is its own


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What both ends of the ring know of a render; nothing in it changes while it runs."""

    seed: int
    frame_shape: tuple[int, int, int]  # channels, height, width of a latent
    schedule: BlockSchedule
    levels: Levels
    guidance: GuidancePlan
    boundary: float
    pool: NoisePool | None  # none: every latent has noise of its own
    texts: dict[int, Tensor]  # prompts, embedded, by the first block that reads them
    negative_BSD: Tensor | None  # what all of them are guided away from
    condition: Condition
    causal_latents: int
    fps: int
    prefix_level: float
    device: torch.device

    def to(self, device: torch.device) -> "Sampling":
        negative_BSD = self.negative_BSD
        return replace(
            self,
            texts={block: text_BSD.to(device) for block, text_BSD in self.texts.items()},
            negative_BSD=None if negative_BSD is None else negative_BSD.to(device),
            condition=self.condition.to(device),
            device=device,
        )

    def without_texts(self) -> "Sampling":
        """For the last stage's end, which reads none."""
        return replace(self, texts={}, negative_BSD=None)

    def noise(self, block: int, step: int | None = None) -> Tensor:
        """What a block starts from, or the fresh noise a few-step solver adds to it at a step."""
        start, stop = self.schedule.bounds(block)
        if self.pool is None or step is not None:
            return self.noise_of(start, stop - start, step)
        frames = [self.noise_of(frame, 1, None) for frame in self.pool.frames(block)]
        return torch.cat(frames, dim=2)

    def noise_of(self, start: int, count: int, step: int | None) -> Tensor:
        noise_BCTHW = window_noise(self.seed, start, count, self.frame_shape, step)
        return noise_BCTHW.to(self.device)

    def remember(self, block: int, text_BSD: object, oldest: int) -> None:
        """Blocks from this one on read another prompt; none before `oldest` reads any more."""
        assert isinstance(text_BSD, Tensor)
        self.texts[block] = text_BSD.to(self.device)
        for past in sorted(first for first in self.texts if first <= oldest)[:-1]:
            del self.texts[past]

    def text(self, block: int) -> Tensor:
        return self.texts[max(first for first in self.texts if first <= block)]

    @property
    def always_guided(self) -> bool:
        """Both branches run at every step, as each reads keys and values the same branch made."""
        return self.guidance.guided and (self.schedule.commits or self.schedule.right > 0)

    def guided(self, task: Task) -> bool:
        if self.always_guided:
            return True
        scales = self.guidance.scales
        return any(scales[part.step] is not None for part in task.written)


@dataclass
class Windows:
    """Holds the latents that some window has yet to read, each block in its newest version."""

    sampling: Sampling
    _held: dict[int, tuple[int, Tensor]] = field(default_factory=dict)  # block: version, latents
    _dropped: int = 0  # blocks before this one are read by nobody any more
    _admitted: int = 0  # blocks before this one have begun
    _lock: threading.Lock = field(default_factory=threading.Lock)  # held while prompts change

    def put(self, moved: Moved) -> None:
        """A new version of a block; one that is repeated, or read by nobody, is ignored."""
        held = self._held.get(moved.block, (0,))[0]
        if moved.block >= self._dropped and moved.step > held:
            self._held[moved.block] = moved.step, moved.latents_BCTHW

    def ready(self, task: Task) -> bool:
        """Whether every version that the task reads has come round."""
        return all(
            part.step == 0 or self._held.get(part.block, (0,))[0] == part.step
            for part in task.parts
        )

    @torch.inference_mode()
    def inputs(self, task: Task) -> Inputs:
        """The task's window; latents that no later one reads are let go."""
        s = self.sampling
        self.admit(max((block + 1 for block in task.admits), default=0))
        texts_BSD = self._texts(task)  # before blocks are dropped, and their prompts with them
        latents_BCTHW = torch.cat([self._latents(part) for part in task.parts], dim=2)
        spans = [(part.start, part.stop) for part in task.parts]
        step = min((part.step for part in task.written), default=s.levels.steps - 1)
        for block in task.drops:
            self._held.pop(block, None)
            self._dropped = max(self._dropped, block + 1)
        return Inputs(
            latents_BCTHW=s.condition.add_channels(latents_BCTHW, spans),
            timesteps_BT=self._timesteps(task),
            texts_BSD=texts_BSD,
            image_BND=s.condition.tokens_BND,
            expert=int(s.levels.low_noise(step, s.boundary)),
            causal_latents=s.causal_latents,
            fps=s.fps,
        )

    def admit(self, stop: int) -> None:
        """Blocks before this one have begun: of a burst, the newest comes first."""
        with self._lock:
            self._admitted = max(self._admitted, stop)

    def change_text(self, text: object) -> int:
        """Blocks that are yet to be admitted, from the returned one on, read this prompt."""
        with self._lock:
            self.sampling.remember(self._admitted, text, self._dropped)
            return self._admitted

    def begins_prompt(self, block: int) -> bool:
        """Whether this block reads another prompt than the one before: from now on that is so."""
        self.admit(block + 1)
        return block > 0 and block in self.sampling.texts

    def held(self) -> dict[int, tuple[int, Tensor]]:
        """The newest versions; nothing in them is written into later."""
        return dict(self._held)

    def restore(self, walk: WalkState, held: Mapping[int, tuple[int, Tensor]]) -> None:
        """Go on from between two ticks."""
        device = self.sampling.device
        self._held = {block: (step, kept.to(device)) for block, (step, kept) in held.items()}
        self._admitted = walk.next_block
        self._dropped = walk.oldest

    def _latents(self, part: Part) -> Tensor:
        s = self.sampling
        start = s.schedule.bounds(part.block)[0]
        if part.step == 0:
            block_BCTHW = s.noise(part.block)
        else:
            step, block_BCTHW = self._held[part.block]
            assert step == part.step, f"{part} is read at version {step}"
        latents_BCTHW = block_BCTHW[:, :, part.start - start : part.stop - start]
        if part.noised:
            noise_BCTHW = s.noise_of(part.start, part.num_latents, _PREFIX_STREAM)
            level = s.prefix_level
            latents_BCTHW = (1 - level) * latents_BCTHW + level * noise_BCTHW
        return s.condition.pin(latents_BCTHW, part.start)

    def _timesteps(self, task: Task) -> Tensor:
        """(1, 1) where all latents of the window are told one level, else (1, T)."""
        s = self.sampling
        timesteps: list[float] = []
        written = task.written[0] if task.written else None
        for part in task.parts:
            of = part if s.schedule.per_latent or written is None else written
            timesteps += [self._timestep(of)] * part.num_latents
        if s.condition.first_BCTHW is not None and task.parts[0].start == 0:
            timesteps[0] = 0.0
        if len(set(timesteps)) == 1:
            timesteps = timesteps[:1]
        return torch.tensor([timesteps], dtype=torch.float64)

    def _timestep(self, part: Part) -> float:
        if part.step < self.sampling.levels.steps:
            return self.sampling.levels.timesteps[part.step]
        return 1000 * self.sampling.prefix_level if part.noised else 0.0

    def _texts(self, task: Task) -> tuple[Tensor, ...]:
        block = (task.written or task.parts)[-1].block if task.text_of is None else task.text_of
        with self._lock:
            text_BSD = self.sampling.text(block)
        if not self.sampling.guided(task):
            return (text_BSD,)
        assert self.sampling.negative_BSD is not None
        both = (text_BSD, self.sampling.negative_BSD)
        return (torch.cat(both),) if self.sampling.guidance.mode == "batched" else both
