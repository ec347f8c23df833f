"""Classifier-free guidance: at which steps, how strongly, and how the two branches are run.

B batch, C channels, T latents, H height, W width; S text tokens, D their width.
"""

from dataclasses import dataclass

from torch import Tensor

from ..configs.schema import SamplingConfig
from .levels import Levels


@dataclass(frozen=True)
class GuidancePlan:
    """What each step does about the negative prompt."""

    scales: tuple[float | None, ...]  # none: the conditional branch alone
    mode: str

    @property
    def guided(self) -> bool:
        """Whether any step reads the negative prompt."""
        return any(scale is not None for scale in self.scales)


def plan_guidance(sampling: SamplingConfig, levels: Levels, boundary: float = 0.0) -> GuidancePlan:
    """`boundary` is the level under which the low-noise expert, with a scale of its own, runs."""
    low = sampling.guidance if sampling.guidance_low is None else sampling.guidance_low
    scales: list[float | None] = []
    for step in range(levels.steps):
        scale = low if levels.low_noise(step, boundary) else sampling.guidance
        inside = sampling.guidance_to <= levels.sigmas[step] <= sampling.guidance_from
        on = inside and scale > 1 and sampling.guidance_mode != "none"
        scales.append(scale if on else None)
    return GuidancePlan(tuple(scales), sampling.guidance_mode)


def guide(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Away from the unconditional velocity. In float32: the difference of two bfloat16 is small."""
    uncond = uncond.float()
    return uncond + scale * (cond.float() - uncond)
