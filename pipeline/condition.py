"""How given pictures enter the model: as channels beside the latents, as tokens, or as a latent.

B batch, C channels, T latents, H height, W width, N image tokens, D width of a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..models.arch import ModelArch
from ..models.vae import StreamingEncoder

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What pictures add to a window; every part may be absent."""

    channels_BCTHW: Tensor | None = None  # concatenated to the latents
    tokens_BND: Tensor | None = None  # CLIP's, attended to beside the prompt
    first_BCTHW: Tensor | None = None  # stands for the first latent, at level 0

    def to(self, device: torch.device) -> "Condition":
        def moved(part: Tensor | None) -> Tensor | None:
            return None if part is None else part.to(device)

        return Condition(
            channels_BCTHW=moved(self.channels_BCTHW),
            tokens_BND=moved(self.tokens_BND),
            first_BCTHW=moved(self.first_BCTHW),
        )

    def pin(self, latents_BCTHW: Tensor, start: int) -> Tensor:
        """Latents from number `start` on, with the given ones in their place."""
        if self.first_BCTHW is None or start > 0:
            return latents_BCTHW
        first_BCTHW = self.first_BCTHW.to(latents_BCTHW)
        return torch.cat([first_BCTHW, latents_BCTHW[:, :, 1:]], dim=2)

    def add_channels(self, latents_BCTHW: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
        """The latents that stand in `spans` of the video, with the channels that go with them."""
        if self.channels_BCTHW is None:
            return latents_BCTHW
        channels = [self.channels_BCTHW[:, :, start:stop] for start, stop in spans]
        return torch.cat([latents_BCTHW, torch.cat(channels, dim=2).to(latents_BCTHW)], dim=1)


def encode_pictures(
    arch: ModelArch,
    vae: "AutoencoderKLWan",
    tile: int,
    num_latents: int,
    first_BCHW: Tensor,
    last_BCHW: Tensor | None,
    tokens_BND: Tensor | None,
) -> Condition:
    """Pictures in [-1, 1] of the video's size, and CLIP's tokens where the model reads them."""
    encoder = StreamingEncoder(vae, tile)
    first_BCTHW = encoder.encode(first_BCHW[:, :, None])
    if arch.image == "first-latent":
        return Condition(first_BCTHW=first_BCTHW)
    latents = [first_BCTHW]
    grey = first_BCHW.new_zeros(1, 3, arch.vae.time_stride, *first_BCHW.shape[2:])
    for index in range(1, num_latents):
        frames = grey
        if last_BCHW is not None and index == num_latents - 1:
            frames = torch.cat([grey[:, :, 1:], last_BCHW[:, :, None]], dim=2)
        latents.append(encoder.encode(frames))
    latents_BCTHW = torch.cat(latents, dim=2)
    mask_BCTHW = latents_BCTHW.new_zeros(1, arch.vae.time_stride, *latents_BCTHW.shape[2:])
    mask_BCTHW[:, :, 0] = 1.0  # the first latent is one frame, counted as a whole group
    if last_BCHW is not None:
        mask_BCTHW[:, -1, -1] = 1.0
    channels_BCTHW = torch.cat([mask_BCTHW, latents_BCTHW], dim=1)
    return Condition(channels_BCTHW=channels_BCTHW, tokens_BND=tokens_BND)
