"""Lengths and sections of a video, as people write them: in frames, or in seconds with an s."""

import math
import re
from fractions import Fraction


def parse_length(asked: str, fps: int, frames_per_latent: int) -> int:
    """Frames of `extend`: what is given in seconds becomes the next whole number of latents."""
    frames, in_seconds = _frames("extend", asked, fps)
    return -(-frames // frames_per_latent) * frames_per_latent if in_seconds else frames


def parse_section(asked: str, fps: int) -> tuple[int, int]:
    """The first frame of FROM..TO, and the one after its last."""
    first, dots, stop = asked.partition("..")
    if not dots:
        raise ValueError(
            f"redo={asked} is no section of a video; give its first frame and the one after its "
            "last, as 32..64, or their times, as 2s..4s"
        )
    return _frames("redo", first, fps)[0], _frames("redo", stop, fps)[0]


def _frames(field: str, asked: str, fps: int) -> tuple[int, bool]:
    """And whether they were given in seconds."""
    found = re.fullmatch(r"(-?[0-9]+(?:\.[0-9]+)?)(s?)", asked.strip(), re.ASCII)
    if found is None or not (found[2] or found[1].lstrip("-").isdigit()):
        raise ValueError(
            f"{field}={asked} names no frames; give a whole number of them, or seconds as 12s"
        )
    if found[2]:
        return math.ceil(Fraction(found[1]) * fps), True
    return int(found[1]), False
