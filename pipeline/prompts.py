"""From which block on which prompt is read."""

import math
from collections.abc import Sequence
from fractions import Fraction

from ..models.text import clean_prompt
from .schedule import BlockSchedule


def prompts_by_block(
    prompt: str,
    changes: Sequence[tuple[float, str]],
    schedule: BlockSchedule,
    *,
    fps: int,
    frames_per_latent: int,
) -> dict[int, str]:
    """The prompt of every block that begins with a new one.

    A change at a second is for the block that holds its first frame; blocks before it are not
    touched, unless they share a window with it.
    """
    prompts, changed = {0: prompt}, set()
    for second, text in changes:
        block = _block_at(second, text, schedule, fps, frames_per_latent)
        if block in changed:
            raise ValueError(
                f"prompt_at={second:g} falls into block {block}, as another prompt does, and a "
                "block has one prompt; leave one out, or make blocks.size smaller"
            )
        if block == 0 and second > 0:
            later = "more frames"
            if schedule.num_blocks != 1:
                later = f"a time of {_second_of(1, schedule, fps, frames_per_latent)} or later"
            raise ValueError(
                f"prompt_at={second:g} falls into the first block, which has the prompt of the "
                f"render; choose {later}, or a policy with smaller blocks, as "
                "blocks.policy=dualparal-grouped"
            )
        prompts[block] = text
        changed.add(block)
    return prompts


def _block_at(
    second: float, text: str, schedule: BlockSchedule, fps: int, frames_per_latent: int
) -> int:
    if not (math.isfinite(second) and second >= 0):
        raise ValueError(
            f"prompt_at={second} is no time in the video; give seconds from its start, 0 or more"
        )
    if not clean_prompt(text, f"prompt_at={second:g}: prompt"):
        raise ValueError(f"prompt_at={second:g} has an empty prompt; describe what is seen then on")
    frame = math.ceil(Fraction(str(second)) * fps)  # 1.12 s of 25 frames are 28
    latent = 0 if frame == 0 else 1 + (frame - 1) // frames_per_latent
    if schedule.num_latents is not None and latent >= schedule.num_latents:
        frames = 1 + (schedule.num_latents - 1) * frames_per_latent
        raise ValueError(
            f"prompt_at={second:g} is after the last of {frames} frames ({frames / fps:g} s), "
            "so that it would never be seen; choose an earlier time or more frames"
        )
    return schedule.block_at(latent)


def _second_of(block: int, schedule: BlockSchedule, fps: int, frames_per_latent: int) -> str:
    latent = schedule.bounds(block)[0]
    return f"{(1 + (latent - 1) * frames_per_latent) / fps:.2f} s"
