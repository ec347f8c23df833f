"""Finished blocks in the order of the video, each once: after a failure some come again.

B batch, C channels, T latents, H height, W width.
"""

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from ..parallel.stage import Moved


class InOrder:
    """Of one chain."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._next = 0
        self._waiting: dict[int, Moved] = {}  # for those before them: at most a burst

    def resume(self, first: int, clean: Mapping[int, Tensor]) -> Iterator[Moved]:
        """Begin with block `first`; `clean` blocks are finished."""
        self._next = first
        return self.add(
            Moved(block=block, step=self._steps, latents_BCTHW=latents_BCTHW)
            for block, latents_BCTHW in clean.items()
        )

    def add(self, finished: Iterable[Moved]) -> Iterator[Moved]:
        for moved in finished:
            if moved.block >= self._next:
                self._waiting[moved.block] = moved
        while self._next in self._waiting:
            yield self._waiting.pop(self._next)
            self._next += 1
