"""Clips of the world as latents, made once and kept in a file: training reads windows of them.

N clips, C channels, T latents, H height, W width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..world.draw import draw
from ..world.scene import random_scene
from .store import written_aside
from .vae_whole import encode_whole

_LATEST_START = 2000  # clips begin anywhere in a scene
_FRAMES_AT_ONCE = 400
_SHARD = 512


class LatentClips:
    """Normalised latents of the scenes `seeds`, in bfloat16's precision."""

    def __init__(self, clips_NCTHW: Tensor, seeds: Sequence[int]) -> None:
        assert len(clips_NCTHW) == len(seeds)
        self._clips_NCTHW, self.seeds = clips_NCTHW, tuple(seeds)

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def latents(self) -> int:
        return self._clips_NCTHW.shape[2]

    def shape(self, latents: int) -> tuple[int, int, int, int]:
        """Of a video of so many: C T H W."""
        _, channels, _, height, width = self._clips_NCTHW.shape
        return channels, latents, height, width

    def window(self, number: int, start: int, stop: int) -> Tensor:
        return self._clips_NCTHW[number, :, start:stop].float()


@torch.no_grad()
def encode_clips(vae: Any, seeds: Sequence[int], latents: int, compiled: bool = False) -> Tensor:
    """(N, C, T, H, W) of the scenes, each from a moment of its own."""
    encode = torch.compile(encode_whole, dynamic=False) if compiled else encode_whole
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    parts, at_once = [], max(1, _FRAMES_AT_ONCE // (4 * latents - 3))
    for begin in range(0, len(seeds), at_once):
        frames = np.stack([_clip(seed, latents) for seed in seeds[begin : begin + at_once]])
        frames_NCTHW = torch.from_numpy(frames).movedim(-1, 1).float() / 127.5 - 1
        with torch.autocast(frames_NCTHW.device.type, torch.bfloat16):
            z_NCTHW = encode(vae, frames_NCTHW).float()
        parts.append(((z_NCTHW - mean) / std).bfloat16().contiguous())
    return torch.cat(parts)


def _clip(seed: int, latents: int) -> np.ndarray[Any, Any]:
    rng = np.random.Generator(np.random.PCG64([4, seed]))
    return draw(random_scene(seed), int(rng.integers(_LATEST_START)), 4 * latents - 3)


def load_or_encode(
    path: Path, vae: Any, count: int, latents: int, compiled: bool = False
) -> LatentClips:
    """The file's clips; clips that are missing are made, and written in shards as they are."""
    shards = []
    for begin in range(0, count, _SHARD):
        seeds = range(begin, min(begin + _SHARD, count))
        shard = path / f"clips-{begin:06d}-{len(seeds)}x{latents}.safetensors"
        if not shard.exists():
            path.mkdir(parents=True, exist_ok=True)
            with written_aside(shard) as part:
                save_file({"latents": encode_clips(vae, seeds, latents, compiled)}, part)
        shards.append(load_file(shard)["latents"])
    return LatentClips(torch.cat(shards), range(count))
