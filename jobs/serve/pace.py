"""How long a segment can be, and how far a render may be ahead of the reader that paces it."""

from collections.abc import Mapping
from typing import Any

from ...pipeline.plan import Plan


def is_paced(request: Mapping[str, Any]) -> bool:
    """Whether it waits for its reader; of a redo nothing is seen before it is done."""
    return bool(request["pace"] == "consumer" and not request.get("redoes"))


def longest_segment(plan: Plan) -> int:
    """Frames: half a second at least, and whole blocks."""
    schedule, fps = plan.schedule, plan.config.video.fps
    # the last block may be the longest
    ends = {schedule.first_block, (schedule.num_blocks or 1) - 1}
    latents = max(stop - start for start, stop in map(schedule.bounds, ends))
    return (fps + 1) // 2 + latents * plan.arch.vae.time_stride


def credit(plan: Plan) -> int:
    """Frames made and not taken that are no reason to wait: more than a segment holds back."""
    return 2 * longest_segment(plan)
