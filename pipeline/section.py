"""A section of a video that is there: latents made anew between those that stay, or after them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from .schedule import BlockSchedule


@dataclass(frozen=True, kw_only=True)
class Section:
    """Latents from `first` to before `stop`, in a video whose others are there."""

    revision: int  # of the video that comes of it; the first one to be made is 0
    first: int
    stop: int
    prompts: tuple[tuple[int, str], ...]  # of the whole video: a latent, and the prompt from there


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


def _prompt_at(prompts: Sequence[tuple[int, str]], latent: int) -> str:
    return next(text for first, text in reversed(prompts) if first <= latent)
