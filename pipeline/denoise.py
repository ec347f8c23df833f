"""The denoising loop over one window: noise in, clean latents out, a step at a time.

B batch, C channels, T latents, H height, W width, S text tokens.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..models.protocol import VideoDiT
from .condition import Condition
from .errors import RenderError
from .guidance import GuidancePlan, predict
from .noise import window_noise
from .solver import Solver, SolverState


@dataclass(frozen=True, kw_only=True)
class Window:
    """What every step of one window reads."""

    seed: int
    shape: tuple[int, int, int, int]  # channels, latents, height, width
    text_BSD: Tensor
    negative_BSD: Tensor | None
    condition: Condition
    causal_latents: int
    fps: int
    device: torch.device

    def noise(self, step: int | None = None) -> Tensor:
        """What the window starts from, or the fresh noise a few-step solver adds at a step."""
        channels, latents, height, width = self.shape
        noise_BCTHW = window_noise(self.seed, 0, latents, (channels, height, width), step)
        return noise_BCTHW.to(self.device)


@torch.inference_mode()
def denoise(
    window: Window, model_at: Callable[[int], VideoDiT], solver: Solver, guidance: GuidancePlan
) -> Generator[Tensor]:
    """The latents after every step, float32; the last ones are clean."""
    latents_BCTHW, state = window.noise(), SolverState.empty()
    for k in range(solver.levels.steps):
        forward = partial(_velocity, model_at(k), window, solver.levels.timesteps[k])
        velocity_BCTHW = predict(
            forward, latents_BCTHW, window.text_BSD, window.negative_BSD, guidance, k
        )
        latents_BCTHW, state = solver.step(
            k, latents_BCTHW, velocity_BCTHW, state, partial(window.noise, k)
        )
        latents_BCTHW = window.condition.pin(latents_BCTHW)
        _check_finite(latents_BCTHW, k, solver)
        yield latents_BCTHW


def _velocity(
    model: VideoDiT, window: Window, timestep: float, latents_BCTHW: Tensor, text_BSD: Tensor
) -> Tensor:
    batch, _, num_latents = latents_BCTHW.shape[:3]
    tokens = window.condition.tokens_BND
    state = model.embed(
        window.condition.model_input(latents_BCTHW),
        window.condition.timesteps(timestep, batch, num_latents),
        text_BSD,
        None if tokens is None else tokens.expand(batch, -1, -1),
        causal_latents=window.causal_latents,
        fps=window.fps,
    )
    return model.head(model.run_layers(state, range(model.num_layers))).float()


def _check_finite(latents_BCTHW: Tensor, k: int, solver: Solver) -> None:
    if not torch.isfinite(latents_BCTHW).all():
        raise RenderError(
            f"latents hold NaN or infinity after step {k + 1} of {solver.levels.steps} (level "
            f"{solver.levels.sigmas[k]:.3f}), so every frame would be black; try "
            "model.dtype=bfloat16 or float32, a lower sampling.guidance, or check the weights"
        )
