"""What to try when memory was not enough: a plan that needs less, for the same video.

Size, length, steps and seed stay. Frames that are not final yet may differ a little: tiles are
blended, and fewer blocks in flight see less of each other.
"""

from collections.abc import Mapping
from typing import Any

from ...pipeline.plan import Plan

MAX_INFLIGHT = "max_inflight"  # blocks; not a field, as nobody would set it
_TILE = 256  # pixels

Changes = Mapping[str, Any]  # fields of the configuration by dotted key, and max_inflight


def next_measure(plan: Plan, *, decoding: bool) -> Changes | None:
    """The least that has not been done; none: nothing is left."""
    config, schedule = plan.config, plan.schedule
    if decoding:
        side = max(config.video.height, config.video.width)
        can_tile = config.model.vae_tile == 0 and side > _TILE
        return {"model.vae_tile": _TILE} if can_tile else None
    if config.sampling.guidance_mode == "batched":
        return {"sampling.guidance_mode": "sequential"}
    least = max(1, schedule.burst)
    if schedule.max_inflight > least:
        return {MAX_INFLIGHT: max(least, schedule.max_inflight // 2)}
    return None


def in_words(changes: Changes) -> str:
    return ", ".join(f"{key}={value}" for key, value in changes.items())
