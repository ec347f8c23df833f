"""From a plan to frames: each part of the model is loaded when its turn comes and let go after it.

B batch, C channels, T latents or frames, H height, W width.
"""

from collections.abc import Callable
from collections.abc import Generator as Stream
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..models.vae import StreamingDecoder, to_uint8
from .condition import Condition
from .denoise import Window, denoise
from .errors import RenderError
from .guidance import GuidancePlan, plan_guidance
from .parts import Experts, check_parts, encode_condition, encode_texts, load_plan_vae
from .plan import Plan
from .solver import make_solver

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

Report = Callable[[str, int, int], None]  # what is being done, how much of it, of how much


@dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """Frames that have just become final."""

    block: int
    start: int  # number of its first frame in the video
    frames: npt.NDArray[np.uint8]  # n x height x width x 3


class Generator:
    """Renders one plan."""

    def __init__(self, plan: Plan, report: Report = lambda *_: None) -> None:
        check_parts(plan)
        self._plan = plan
        self._report = report

    @torch.inference_mode()
    def latents(self) -> Tensor:
        """The clean latents, normalised: (1, C, T, H, W) float32."""
        plan, sampling, levels = self._plan, self._plan.config.sampling, self._plan.levels
        boundary = plan.config.model.boundary
        guidance = plan_guidance(sampling, levels, boundary)
        window = self._window(guidance)
        experts = Experts(plan)
        solver = make_solver(sampling.solver, levels)
        steps = denoise(
            window, lambda k: experts.get(levels.low_noise(k, boundary)), solver, guidance
        )
        self._report("denoise", 0, levels.steps)
        with closing(steps):
            for done, latents_BCTHW in enumerate(steps, start=1):  # noqa: B007
                self._report("denoise", done, levels.steps)
        return latents_BCTHW

    def chunks(self) -> Stream[Chunk]:
        """Frames in order, as the VAE makes them of one latent after the other."""
        latents_BCTHW = self.latents()
        decoder = StreamingDecoder(self._vae, self._plan.config.model.vae_tile)
        start, total = 0, self._plan.config.video.frames
        self._report("decode", start, total)
        for latent_BCTHW in torch.split(latents_BCTHW, 1, dim=2):
            frames_BCTHW = decoder.decode(latent_BCTHW)
            if not torch.isfinite(frames_BCTHW).all():
                raise RenderError(
                    f"the VAE made NaN or infinity of the latent that frame {start} begins, so the "
                    "video would turn black; try model.vae_dtype=bfloat16 or float32, or check its "
                    "weights"
                )
            frames_THWC = to_uint8(frames_BCTHW).cpu().numpy()
            yield Chunk(block=0, start=start, frames=frames_THWC)
            start += len(frames_THWC)
            self._report("decode", start, total)

    @cached_property
    def _vae(self) -> "AutoencoderKLWan":
        return load_plan_vae(self._plan)

    def _window(self, guidance: GuidancePlan) -> Window:
        plan = self._plan
        prompts = [plan.request.prompt]
        if guidance.guided:
            prompts.append(plan.config.sampling.negative_prompt)
        self._report("prompt", 0, 1)
        text_BSD = encode_texts(plan, prompts)
        self._report("prompt", 1, 1)
        return Window(
            seed=plan.request.seed,
            shape=plan.latents_shape,
            text_BSD=text_BSD[:1],
            negative_BSD=text_BSD[1:] if guidance.guided else None,
            condition=encode_condition(plan, self._vae) if plan.pictures else Condition(),
            causal_latents=plan.arch.causal_latents,
            fps=plan.config.video.fps,
            device=plan.device,
        )
