"""A section of a video that is there: latents made anew between those that stay, or after them.

B batch, C channels, T latents, H height, W width.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from ..parallel.snapshot import Snapshot
from .checkpoint import Checkpoint
from .noise import SEED_LIMIT
from .schedule import BlockSchedule

Latents = Callable[[int, int], Tensor]  # clean ones of a video, from one to before another


@dataclass(frozen=True, kw_only=True)
class Section:
    """Latents from `first` to before `stop`, in a video whose others are there."""

    revision: int  # of the video that comes of it; the first one to be made is 0
    first: int
    stop: int
    prompts: tuple[tuple[int, str], ...]  # of the whole video: a latent, and the prompt from there


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What is there beside a section that a decoder reads."""

    lead_BCTHW: Tensor | None  # before it, for the decoder's state alone
    tail_BCTHW: Tensor | None  # after it: decoded anew, as the state before it is another


def revision_seed(seed: int, revision: int) -> int:
    """A pure function of both; that of the first video is its own."""
    if not revision:
        return seed
    words = hashlib.sha256(f"{seed} {revision}".encode()).digest()
    return int.from_bytes(words[:8], "little") % SEED_LIMIT


def section_prompts(section: Section, schedule: BlockSchedule) -> dict[int, str]:
    """The prompt of every block that begins with another than the one before it."""
    assert schedule.num_blocks is not None
    found = [
        _prompt_at(section.prompts, schedule.bounds(block)[0])
        for block in range(schedule.num_blocks)
    ]
    changes = {b: new for b, (old, new) in enumerate(pairwise(found), start=1) if old != new}
    return {0: found[0], **changes}


def change_prompts(
    prompts: Sequence[tuple[int, str]], first: int, stop: int | None, prompt: str
) -> tuple[tuple[int, str], ...]:
    """The same, with this one from `first` to before `stop`, or to the end."""
    kept = {latent: text for latent, text in prompts if latent < first}
    if stop is not None:
        kept[stop] = _prompt_at(prompts, stop)
        kept |= {latent: text for latent, text in prompts if latent >= stop}
    return tuple(sorted({**kept, first: prompt}.items()))


def prompt_times(
    prompts: Sequence[tuple[int, str]], *, fps: int, frames_per_latent: int
) -> tuple[tuple[float, str], ...]:
    """Changes of the prompt, in seconds."""
    return tuple(
        ((1 + (latent - 1) * frames_per_latent) / fps, text)
        for (_, before), (latent, text) in pairwise(prompts)
        if text != before
    )


def opening(schedule: BlockSchedule, frames: int, latents: Latents) -> Checkpoint:
    """Where a section's chain begins: blocks that its windows read are there and clean."""
    walk = schedule.beginning
    held = {block: (schedule.steps, latents(*schedule.bounds(block))) for block in walk.kept}
    return Checkpoint(
        chain=Snapshot(walk=walk, latents=held, samples={}),
        decoder=None,
        decoded=schedule.first_block,
        frames=frames,
        clean={},
    )


def _prompt_at(prompts: Sequence[tuple[int, str]], latent: int) -> str:
    return next(text for first, text in reversed(prompts) if first <= latent)
