"""Videos that a model makes of the world's prompts, each with whether it shows what was asked.

K attempts at one prompt, C channels, T latents, H height, W width.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...configs.train_small import PreferTraining
from ...models.arch import ModelArch
from ...models.fingerprint import fingerprint
from ...models.vae import StreamingDecoder, to_uint8
from ...models.wan import WanDiT
from ..evaluate.measure import measure
from ..world.captions import caption
from ..world.scene import Scene, random_scene
from .dit_recipe import load_start, world_text
from .feed import made_ahead
from .sample import sample_whole
from .shards import Tensors, kept_in_shards

_SHARD = 16  # prompts of a file
_RIGHT_FROM, _WRONG_UNDER = 0.9, 0.7  # identity; between the two neither is said


@dataclass(frozen=True, eq=False)
class Attempts:
    """At one prompt of the world: latents in bfloat16, and 1 right, -1 wrong, 0 neither."""

    seed: int  # of the scene
    videos_KCTHW: Tensor
    verdicts_K: Tensor

    @property
    def right(self) -> list[int]:
        return self._which(1)

    @property
    def wrong(self) -> list[int]:
        return self._which(-1)

    def _which(self, verdict: int) -> list[int]:
        return [k for k, one in enumerate(self.verdicts_K.tolist()) if one == verdict]


def verdict(frames_THWC: Any, scene: Scene) -> int:
    """Right if everything asked for is there and stays what it is."""
    scores, _ = measure(frames_THWC, scene, [])
    identity, whole = scores["identity"] or 0.0, scores["prompt_whole"] == 1
    if not whole or identity < _WRONG_UNDER:
        return -1
    return int(identity > _RIGHT_FROM)


class Sampler:
    """Makes them with the model in a folder; a scene's seed draws their length."""

    def __init__(self, start: Path, arch: ModelArch, mix: PreferTraining, shift: float) -> None:
        self._dit, self._text = WanDiT(arch.dit), world_text(arch)
        load_start(self._dit, self._text, start, arch)
        self._mix, self._shift = mix, shift
        weights = [fingerprint(start / part) for part in ("transformer", "text_encoder")]
        made_by = (*weights, mix.attempts, mix.lengths, mix.steps, mix.guidance, shift)
        # of all that an attempt follows from, but its seed
        self.key = hashlib.sha256(repr(made_by).encode()).hexdigest()[:12]

    def to(self, device: torch.device) -> "Sampler":
        self._dit.to(device)
        self._text.to(device)
        return self

    def __call__(self, seed: int, frame: tuple[int, int, int]) -> Tensor:
        """K C T H W; `frame` is C H W."""
        mix, (channels, height, width) = self._mix, frame
        latents = mix.lengths[np.random.default_rng(seed).integers(len(mix.lengths))]
        words = caption(random_scene(seed), seed)
        with torch.autocast(self._text.encoder.device.type, torch.bfloat16):
            return sample_whole(
                self._dit,
                self._text,
                [words] * mix.attempts,
                (channels, int(latents), height, width),
                shift=self._shift,
                steps=mix.steps,
                guidance=mix.guidance,
                seed=seed,
            )


def load_or_make(
    folder: Path, seeds: Sequence[int], sample: Callable[[int], Tensor], vae: Any, workers: int = 0
) -> list[Attempts]:
    """Those at the scenes of these seeds, kept in shards as they are made."""

    def make(some: Sequence[int]) -> Tensors:
        made = made_ahead(lambda seed: _attempt(seed, sample, vae), some, workers)
        return dict(_named(some, made))

    kept: Tensors = {}
    name = "attempts-{begin:06d}-{count}.safetensors"
    for shard in kept_in_shards(folder, name, seeds, _SHARD, make):
        kept |= shard
    return [Attempts(seed, kept[f"{seed}.videos"], kept[f"{seed}.verdicts"]) for seed in seeds]


def check_some_wrong(attempts: Sequence[Attempts], mix: PreferTraining) -> None:
    """ValueError if all that the model makes is right."""
    if not any(one.wrong for one in attempts):
        raise ValueError(
            f"prefer.prompts={mix.prompts} with prefer.attempts={mix.attempts}: none of the "
            f"attempts in {mix.cache} is wrong, so there is nothing to learn from; raise either"
        )


@torch.no_grad()
def _attempt(seed: int, sample: Callable[[int], Tensor], vae: Any) -> tuple[Tensor, Tensor]:
    videos_KCTHW, scene = sample(seed).to(vae.dtype), random_scene(seed)
    verdicts = [
        verdict(to_uint8(StreamingDecoder(vae).decode(video[None])).cpu().numpy(), scene)
        for video in videos_KCTHW
    ]
    return videos_KCTHW.bfloat16().cpu(), torch.tensor(verdicts, dtype=torch.int8)


def _named(
    seeds: Sequence[int], made: Iterator[tuple[Tensor, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    for seed, (videos_KCTHW, verdicts_K) in zip(seeds, made, strict=True):
        yield f"{seed}.videos", videos_KCTHW.contiguous()
        yield f"{seed}.verdicts", verdicts_K
