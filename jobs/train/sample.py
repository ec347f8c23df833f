"""A plain sampler for a look at a model in training: whole videos, guided, by a render's solver.

B batch, C channels, T latents, H height, W width, S text tokens.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ...models.vae import StreamingDecoder, to_uint8
from ...models.wan import WanDiT
from ...pipeline.guidance import guide
from ...pipeline.levels import TRAIN_STEPS, make_levels
from ...pipeline.solver import SolverState, make_solver
from ..world.captions import caption
from ..world.scene import random_scene
from .text_side import TextSide

_SOLVER, _STEPS, _GUIDANCE = "unipc2", 16, 4.0  # the solver is that of the presets


@torch.no_grad()
def sample_whole(
    dit: WanDiT,
    text: TextSide,
    prompts: Sequence[str],
    shape: tuple[int, int, int, int],
    *,
    shift: float,
) -> Tensor:
    """Latents (B, C, T, H, W), a video for each prompt, of the same noise every time."""
    generator = torch.Generator().manual_seed(0)
    device = text.encoder.device
    x_BCTHW = torch.randn((len(prompts), *shape), generator=generator).to(device)
    prompt_BSD, empty_BSD = text.embed(prompts), text.embed([""] * len(prompts))
    solver, state = make_solver(_SOLVER, make_levels(_SOLVER, _STEPS, shift)), SolverState.empty()
    for step, timestep in enumerate(solver.levels.timesteps):
        told_BT = torch.full((len(prompts), 1), timestep / TRAIN_STEPS, dtype=torch.float64)
        wanted, empty = (velocity(dit, x_BCTHW, told_BT, y) for y in (prompt_BSD, empty_BSD))
        x_BCTHW, state = solver.step(step, x_BCTHW, guide(wanted, empty, _GUIDANCE), state)
    return x_BCTHW


def velocity(
    dit: WanDiT, noisy_BCTHW: Tensor, told_BT: Tensor, text_BSD: Tensor, causal: int = 0
) -> Tensor:
    """Of a window that stands alone; `causal`: runs of so many latents see no later run."""
    state = dit.embed(
        noisy_BCTHW,
        1000 * told_BT.double(),
        text_BSD,
        causal_latents=causal,
        tell_apart=told_BT.device.type == "cpu",
    )
    return dit.head(dit.run_layers(state, range(dit.num_layers))).float()


def held_out_prompts(count: int) -> list[str]:
    return [caption(random_scene(number, "held-out"), number) for number in range(count)]


def strips(vae: Any, latents_BCTHW: Tensor) -> np.ndarray[Any, Any]:
    """Every eighth frame side by side, a row for each video: H W C bytes."""
    rows = []
    for row_CTHW in latents_BCTHW:
        frames_THWC = to_uint8(StreamingDecoder(vae).decode(row_CTHW[None].to(vae.device)))
        rows.append(rearrange(frames_THWC[::8].cpu(), "T H W C -> H (T W) C"))
    return torch.cat(rows).numpy()
