"""Clips of the world as latents, made once and kept in a file: training reads windows of them.

N clips, C channels, T latents, H height, W width.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...configs.errors import first_line
from ..home.durable import written_aside
from ..world.draw import draw
from ..world.scene import random_scene
from .feed import made_ahead
from .vae_whole import encode_whole

_LATER = 4  # one clip of so many is from anywhere in its scene, the others from its beginning
_LATEST_START = 2000
_FRAMES_AT_ONCE = 400
_SHARD = 512


class LatentClips(nn.Module):
    """Normalised latents of the scenes `seeds`, in bfloat16's precision, on the model's device."""

    clips_NCTHW: Tensor

    def __init__(self, clips_NCTHW: Tensor, seeds: Sequence[int]) -> None:
        super().__init__()
        assert len(clips_NCTHW) == len(seeds)
        self.register_buffer("clips_NCTHW", clips_NCTHW, persistent=False)
        self.seeds = tuple(seeds)
        # of the clips that begin their scene, where all that the caption names is in view
        self.openings = np.array([n for n, seed in enumerate(self.seeds) if begins_scene(seed)])

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def latents(self) -> int:
        return self.clips_NCTHW.shape[2]

    def shape(self, latents: int) -> tuple[int, int, int, int]:
        """Of a video of so many: C T H W."""
        _, channels, _, height, width = self.clips_NCTHW.shape
        return channels, latents, height, width

    def windows(self, numbers_B: Tensor, starts_B: Tensor, latents: int) -> Tensor:
        """B C T H W: of each clip, so many from its start on."""
        times_BT = starts_B[:, None] + torch.arange(latents, device=starts_B.device)
        return self.clips_NCTHW.movedim(2, 1)[numbers_B[:, None], times_BT].movedim(1, 2).float()


@torch.no_grad()
def encode_clips(
    vae: Any, seeds: Sequence[int], latents: int, compiled: bool = False, workers: int = 0
) -> Tensor:
    """(N, C, T, H, W) of the scenes, from their beginning or a moment of their own."""
    encode = torch.compile(encode_whole, dynamic=False) if compiled else encode_whole
    mean, std = (
        torch.tensor(values, device=vae.device).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    parts, at_once = [], max(1, _FRAMES_AT_ONCE // (4 * latents - 3))

    def frames(begin: int) -> Tensor:
        clips = [_clip(seed, latents) for seed in seeds[begin : begin + at_once]]
        return torch.from_numpy(np.stack(clips))

    for frames_NTHWC in made_ahead(frames, range(0, len(seeds), at_once), workers):
        frames_NCTHW = frames_NTHWC.to(vae.device).movedim(-1, 1).float() / 127.5 - 1
        with torch.autocast(frames_NCTHW.device.type, torch.bfloat16):
            z_NCTHW = encode(vae, frames_NCTHW).float()
        parts.append(((z_NCTHW - mean) / std).bfloat16().contiguous().cpu())
    return torch.cat(parts)


def begins_scene(seed: int) -> bool:
    return seed % _LATER != _LATER - 1


def _clip(seed: int, latents: int) -> np.ndarray[Any, Any]:
    rng = np.random.Generator(np.random.PCG64([4, seed]))
    start = 0 if begins_scene(seed) else int(rng.integers(_LATEST_START))
    return draw(random_scene(seed), start, 4 * latents - 3)


def load_or_encode(
    path: Path, vae: Any, count: int, latents: int, compiled: bool = False, workers: int = 0
) -> LatentClips:
    """A folder's clips of this VAE; those that are missing are made, and written in shards."""
    shards, kind = [], _kind(vae)
    for begin in range(0, count, _SHARD):
        seeds = range(begin, min(begin + _SHARD, count))
        shard = path / f"scenes-{begin:06d}-{len(seeds)}x{latents}-{kind}.safetensors"
        if not shard.exists():
            with written_aside(shard) as part:
                clips = encode_clips(vae, seeds, latents, compiled, workers)
                save_file({"latents": clips}, part)
        shards.append(load_kept(shard)["latents"])
    return LatentClips(torch.cat(shards), range(count))


def load_kept(file: Path) -> dict[str, Tensor]:
    """What was encoded. ValueError names the file where it is damaged."""
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(
            f"{file} is damaged ({first_line(error)}), so nothing can be learnt from it; remove "
            "it, and the same command encodes it again"
        ) from error


def _kind(vae: Any) -> str:
    """Another for every VAE whose latents are others.

    Weights count as the float16 that checkpoints have, so that the copy in a DiT's checkpoint is
    the VAE that the DiT was taught on; another decoder of the same latents is none of its own.
    """
    statistics = [*vae.config.latents_mean], [*vae.config.latents_std]
    digest = hashlib.sha256(json.dumps(statistics).encode())
    for part in (vae.encoder, vae.quant_conv):
        for tensor in part.state_dict().values():
            digest.update(tensor.half().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
