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
from ..parallel.chain import Chain, LocalChain
from ..parallel.split import split_layers
from ..parallel.stage import Moved, Stage
from .condition import Condition
from .errors import RenderError
from .guidance import GuidancePlan, plan_guidance
from .overlap import run_ahead
from .noise_pool import NoisePool
from .parts import Experts, check_parts, encode_condition, encode_texts, load_plan_vae
from .plan import Plan
from .solver import make_solver
from .stepper import Stepper
from .windows import Sampling, Text, Windows

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

    def latents(self) -> Tensor:
        """The clean latents, normalised: (1, C, T, H, W) float32."""
        with closing(self.blocks()) as blocks:
            return torch.cat([block.latents_BCTHW for block in blocks], dim=2)

    def blocks(self) -> Stream[Moved]:
        """Clean blocks in order, each as soon as its last step is done."""
        sampling = self._sampling()
        total = sum(1 for _ in sampling.schedule.tasks())
        self._report("denoise", 0, total)
        with closing(self._chain(sampling).run(sampling.schedule)) as done:
            for one in done:
                self._report("denoise", one.task.number + 1, total)
                yield from one.finished

    def chunks(self) -> Stream[Chunk]:
        """Frames in order, decoded while later blocks are still being made."""
        decoder = StreamingDecoder(self._vae, self._plan.config.model.vae_tile)
        start, total = 0, self._plan.config.video.frames
        with closing(run_ahead(self.blocks(), most=1)) as blocks:
            for block in blocks:
                for latent_BCTHW in torch.split(block.latents_BCTHW, 1, dim=2):
                    frames_BCTHW = decoder.decode(latent_BCTHW)
                    _check_finite(frames_BCTHW, start)
                    frames_THWC = to_uint8(frames_BCTHW).cpu().numpy()
                    yield Chunk(block=block.block, start=start, frames=frames_THWC)
                    start += len(frames_THWC)
                    self._report("decode", start, total)

    @cached_property
    def _vae(self) -> "AutoencoderKLWan":
        return load_plan_vae(self._plan)

    def _chain(self, sampling: Sampling) -> Chain:
        plan = self._plan
        slices = split_layers(plan.arch.dit.num_layers, plan.config.parallel.num_stages)
        stages = [Stage(Experts(plan, layers).get, layers) for layers in slices]
        solver = make_solver(plan.config.sampling.solver, sampling.levels)
        return LocalChain(
            stages, Windows(sampling=sampling), Stepper(sampling=sampling, solver=solver)
        )

    def _sampling(self) -> Sampling:
        plan, levels = self._plan, self._plan.levels
        guidance = plan_guidance(plan.config.sampling, levels, plan.config.model.boundary)
        channels, _, height, width = plan.latents_shape
        return Sampling(
            seed=plan.request.seed,
            frame_shape=(channels, height, width),
            schedule=plan.schedule,
            levels=levels,
            guidance=guidance,
            boundary=plan.config.model.boundary,
            pool=NoisePool(plan.request.seed, plan.schedule) if plan.shares_noise else None,
            texts={0: self._text(guidance)},
            condition=encode_condition(plan, self._vae) if plan.pictures else Condition(),
            causal_latents=plan.arch.causal_latents if plan.config.blocks.policy == "whole" else 0,
            fps=plan.config.video.fps,
            prefix_level=plan.config.blocks.prefix_level,
            device=plan.device,
        )

    def _text(self, guidance: GuidancePlan) -> Text:
        plan = self._plan
        prompts = [plan.request.prompt]
        if guidance.guided:
            prompts.append(plan.config.sampling.negative_prompt)
        self._report("prompt", 0, 1)
        text_BSD = encode_texts(plan, prompts)
        self._report("prompt", 1, 1)
        return Text(prompt_BSD=text_BSD[:1], negative_BSD=text_BSD[1:] if guidance.guided else None)


def _check_finite(frames_BCTHW: Tensor, start: int) -> None:
    if not torch.isfinite(frames_BCTHW).all():
        raise RenderError(
            f"the VAE made NaN or infinity of the latent that frame {start} begins, so the "
            "video would turn black; try model.vae_dtype=bfloat16 or float32, or check its weights"
        )
