"""The frames of one setting and prompt, and where its blocks begin."""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..render import stream_chunks
from ..world.draw import draw
from .settings import Setting, scene

_TRUTH_BLOCK = (
    32  # frames: where a clip of the world is looked at for seams, as blocks of 8 latents
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """T H W C bytes, and the numbers of the frames that blocks after the first begin with."""

    frames_THWC: np.ndarray[Any, Any]
    borders: Sequence[int]
    first_frame_s: float
    total_s: float


def make_clip(setting: Setting, number: int) -> Clip:
    """Render, or draw the truth."""
    begin = time.perf_counter()
    if not setting.policy:
        frames_THWC = draw(scene(number), 0, setting.frames)
        seconds = time.perf_counter() - begin
        return Clip(
            frames_THWC=frames_THWC,
            borders=range(_TRUTH_BLOCK - 3, setting.frames, _TRUTH_BLOCK),
            first_frame_s=seconds,
            total_s=seconds,
        )
    parts, first_frame_s = [], 0.0
    starts: dict[int, int] = {}
    with closing(stream_chunks(setting.plan(number))) as chunks:
        for chunk in chunks:
            first_frame_s = first_frame_s or time.perf_counter() - begin
            starts.setdefault(chunk.block, chunk.start)
            parts.append(chunk.frames)
    return Clip(
        frames_THWC=np.concatenate(parts),
        borders=sorted(starts.values())[1:],
        first_frame_s=first_frame_s,
        total_s=time.perf_counter() - begin,
    )
