"""From a plan to frames: each part of the model is loaded when its turn comes and let go after it.

B batch, C channels, T latents or frames, H height, W width.
"""

from collections.abc import Generator as Stream
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

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
from .noise_pool import NoisePool
from .overlap import run_ahead
from .parts import Experts, check_parts, encode_condition, encode_texts, load_plan_vae
from .plan import Plan
from .solver import make_solver
from .stepper import Stepper
from .windows import Sampling, Text, Windows

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan


class Report(Protocol):
    """Hears what is being done, how much of it, of how much (0: without an end), and a remark."""

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None: ...


def quiet(what: str, done: int, total: int, note: str = "") -> None:
    pass


@dataclass(frozen=True, kw_only=True, eq=False)
class Chunk:
    """Frames that have just become final."""

    block: int
    start: int  # number of its first frame in the video
    frames: npt.NDArray[np.uint8]  # n x height x width x 3


class Generator:
    """Renders one plan."""

    def __init__(self, plan: Plan, report: Report = quiet) -> None:
        check_parts(plan)
        self._plan = plan
        self._report = report
        self._chain: Chain | None = None

    def latents(self) -> Tensor:
        """The clean latents, normalised: (1, C, T, H, W) float32."""
        with closing(self.blocks()) as blocks:
            return torch.cat([block.latents_BCTHW for block in blocks], dim=2)

    def blocks(self) -> Stream[Moved]:
        """Clean blocks in order, each as soon as its last step is done."""
        schedule = self._plan.schedule
        total = 0 if schedule.num_blocks is None else sum(1 for _ in schedule.tasks())
        self._chain = self._make_chain(self._sampling())
        levels: dict[int, int] = {}  # of blocks in flight
        self._report("denoise", 0, total)
        with closing(self._chain.run(schedule)) as done:
            for one in done:
                levels.update({part.block: part.step + 1 for part in one.task.written})
                for block in one.task.finishes:
                    del levels[block]
                note = " ".join(f"{block}:{step}" for block, step in sorted(levels.items()))
                self._report("denoise", one.task.number + 1, total, note)
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

    def set_prompt(self, prompt: str) -> None:
        """Another prompt for the blocks that are yet to begin; from any thread."""
        text = self._texts([prompt])[0]
        assert self._chain is not None, "the render has not begun"
        self._chain.change_text(text)

    def stop(self) -> None:
        """Begin no more blocks; those in flight are finished. From any thread."""
        assert self._chain is not None, "the render has not begun"
        self._chain.stop()

    @cached_property
    def _vae(self) -> "AutoencoderKLWan":
        return load_plan_vae(self._plan)

    def _make_chain(self, sampling: Sampling) -> Chain:
        plan = self._plan
        slices = split_layers(plan.arch.dit.num_layers, plan.config.parallel.num_stages)
        stages = [Stage(Experts(plan, layers).get, layers) for layers in slices]
        solver = make_solver(plan.config.sampling.solver, sampling.levels)
        return LocalChain(
            stages, Windows(sampling=sampling), Stepper(sampling=sampling, solver=solver)
        )

    def _sampling(self) -> Sampling:
        plan, levels = self._plan, self._plan.levels
        channels, _, height, width = plan.latents_shape
        return Sampling(
            seed=plan.request.seed,
            frame_shape=(channels, height, width),
            schedule=plan.schedule,
            levels=levels,
            guidance=self._guidance,
            boundary=plan.config.model.boundary,
            pool=NoisePool(plan.request.seed, plan.schedule) if plan.shares_noise else None,
            texts=dict(zip(plan.prompts, self._texts(list(plan.prompts.values())), strict=True)),
            condition=encode_condition(plan, self._vae) if plan.pictures else Condition(),
            causal_latents=plan.arch.causal_latents if plan.policy == "whole" else 0,
            fps=plan.config.video.fps,
            prefix_level=plan.config.blocks.prefix_level,
            device=plan.device,
        )

    def _texts(self, prompts: Sequence[str]) -> list[Text]:
        plan = self._plan
        guided = self._guidance.guided
        words = [*prompts, plan.config.sampling.negative_prompt] if guided else prompts
        self._report("prompt", 0, 1)
        embedded = torch.split(encode_texts(plan, words), 1)
        self._report("prompt", 1, 1)
        negative_BSD = embedded[-1] if guided else None
        return [
            Text(prompt_BSD=prompt_BSD, negative_BSD=negative_BSD)
            for prompt_BSD in embedded[: len(prompts)]
        ]

    @cached_property
    def _guidance(self) -> GuidancePlan:
        plan = self._plan
        return plan_guidance(plan.config.sampling, plan.levels, plan.config.model.boundary)


def _check_finite(frames_BCTHW: Tensor, start: int) -> None:
    if not torch.isfinite(frames_BCTHW).all():
        raise RenderError(
            f"the VAE made NaN or infinity of the latent that frame {start} begins, so the "
            "video would turn black; try model.vae_dtype=bfloat16 or float32, or check its weights"
        )
