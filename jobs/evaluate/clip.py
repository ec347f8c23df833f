"""The frames of one setting and prompt, and where its blocks begin."""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange

from ...models.vae import StreamingDecoder, StreamingEncoder, to_uint8
from ...pipeline.parts import load_plan_vae
from ...pipeline.plan import Plan
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
        if setting.preset:
            frames_THWC = _through_vae(setting.plan(number), frames_THWC)
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


def _through_vae(plan: Plan, frames_THWC: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What is left of a clip when it has been latents."""
    vae, tile = load_plan_vae(plan), plan.config.model.vae_tile
    clip_BCTHW = rearrange(torch.from_numpy(frames_THWC), "t h w c -> 1 c t h w") / 127.5 - 1
    latents_BCTHW = StreamingEncoder(vae, tile).encode(clip_BCTHW)
    back_THWC: np.ndarray[Any, Any] = (
        to_uint8(StreamingDecoder(vae, tile).decode(latents_BCTHW)).cpu().numpy()
    )
    return back_THWC
