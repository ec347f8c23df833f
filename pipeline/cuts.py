"""Where segments of the video may end: with a block, and half a second of frames at least."""

from collections import deque
from itertools import count

from .schedule import BlockSchedule

_LOOKED_BACK = 1024  # segments: nobody asks about what is longer past


class Cuts:
    """A function of schedule and frame rate alone, so that segments are the same at every attempt.

    Asked about blocks in their order, each as often as need be.
    """

    def __init__(self, schedule: BlockSchedule, *, fps: int, frames_per_latent: int) -> None:
        self._schedule = schedule
        self._stride = frames_per_latent
        self._least = (fps + 1) // 2
        self._next = schedule.first_block  # to be looked at
        # last blocks of segments; before the first block one ends
        self._ends = deque([self._next - 1], maxlen=_LOOKED_BACK)

    def stop_frame(self, block: int) -> int:
        """The frame after a block's last: the first latent is one frame."""
        return 1 + (self._schedule.bounds(block)[1] - 1) * self._stride if block >= 0 else 0

    def blocks_before(self, frame: int) -> int:
        """How many blocks have all their frames before this one."""
        most = self._schedule.num_blocks
        whole = (block for block in count() if self.stop_frame(block) > frame or block == most)
        return next(whole)

    def ends(self, block: int) -> bool:
        """Whether a segment ends with this block. (The last one of the video ends one anyway.)"""
        while self._next <= block:
            if self.stop_frame(self._next) - self.stop_frame(self._ends[-1]) >= self._least:
                self._ends.append(self._next)
            self._next += 1
        return block in self._ends
