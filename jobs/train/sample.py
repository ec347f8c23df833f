"""A plain sampler for a look at a model in training: whole videos, Euler steps, guidance.

B batch, C channels, T latents, H height, W width, S text tokens.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ...models.wan import WanDiT
from .patterns import shifted
from .text_side import TextSide


@torch.no_grad()
def sample_whole(
    dit: WanDiT,
    text: TextSide,
    prompts: Sequence[str],
    shape: tuple[int, int, int, int],
    *,
    shift: float,
    steps: int = 16,
    guidance: float = 4.0,
    seed: int = 0,
) -> Tensor:
    """Latents (B, C, T, H, W), a video for each prompt."""
    generator = torch.Generator().manual_seed(seed)
    device = text.encoder.device
    x_BCTHW = torch.randn((len(prompts), *shape), generator=generator).to(device)
    prompt_BSD, empty_BSD = text.embed(prompts), text.embed([""] * len(prompts))
    sigmas = [float(shifted(1 - k / steps, shift)) for k in range(steps + 1)]
    for sigma, following in pairwise(sigmas):
        told_BT = torch.full((len(prompts), 1), 1000 * sigma, dtype=torch.float64)
        wanted, empty = (_velocity(dit, x_BCTHW, told_BT, y) for y in (prompt_BSD, empty_BSD))
        x_BCTHW = x_BCTHW + (following - sigma) * (empty + guidance * (wanted - empty))
    return x_BCTHW


def _velocity(dit: WanDiT, x_BCTHW: Tensor, told_BT: Tensor, text_BSD: Tensor) -> Tensor:
    state = dit.embed(x_BCTHW, told_BT, text_BSD)
    return dit.head(dit.run_layers(state, range(dit.num_layers))).float()
