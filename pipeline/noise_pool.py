"""One set of noise frames for a whole video, so that its blocks have something in common."""

import numpy as np

from .schedule import BlockSchedule

_STREAM = 2**63  # of the generators that shuffle; seeds of noise stay below it


class NoisePool:
    """Which frame of the pool every latent that is made starts from.

    A pure function of seed, schedule and block. No frame stands twice inside a window, context
    included, nor in two blocks that follow each other closer than that. The first block has the
    frames that it would have without a pool.
    """

    def __init__(self, seed: int, schedule: BlockSchedule) -> None:
        self._seed = seed
        self._schedule = schedule
        largest = schedule.size + schedule.size // 2
        self._reach = schedule.left + schedule.right + largest  # latents that must differ
        self._size = self._reach + largest
        self._frames: list[int] = []  # of every latent drawn so far
        self._next = schedule.first_block  # to be drawn

    def frames(self, block: int) -> tuple[int, ...]:
        """Numbers of pool frames, one per latent of the block."""
        while self._next <= block:
            self._draw(self._next)
            self._next += 1
        start, stop = (latent - self._schedule.first for latent in self._schedule.bounds(block))
        return tuple(self._frames[start:stop])

    def _draw(self, block: int) -> None:
        start, stop = self._schedule.bounds(block)
        recent = set(self._frames[-self._reach :])
        unused = [frame for frame in range(self._size) if frame not in recent]
        if block > 0:
            key = np.array([self._seed + _STREAM, block], dtype=np.uint64)
            unused = np.random.Generator(np.random.Philox(key=key)).permutation(unused).tolist()
        self._frames += unused[: stop - start]
