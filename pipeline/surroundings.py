"""What is there beside a section of a video: where its chain and its decoder begin.

B batch, C channels, T latents, H height, W width.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..parallel.snapshot import Snapshot
from .checkpoint import Checkpoint
from .schedule import BlockSchedule

Latents = Callable[[int, int], Tensor]  # clean ones of a video, from one to before another


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What is there beside a section that a decoder reads."""

    lead_BCTHW: Tensor | None  # before it, for the decoder's state alone
    tail_BCTHW: Tensor | None  # after it: decoded anew, as the state before it is another


def opening(schedule: BlockSchedule, frames: int, latents: Latents) -> Checkpoint:
    """Where a section's chain begins: blocks that its windows read are there and clean."""
    walk = schedule.beginning
    held = {block: (schedule.steps, latents(*schedule.bounds(block))) for block in walk.kept}
    return Checkpoint(
        chain=Snapshot(walk=walk, latents=held, samples={}),
        decoder=None,
        decoded=schedule.first_block,
        frames=frames,
        clean={},
    )
