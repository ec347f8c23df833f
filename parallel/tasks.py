"""What the schedule hands to stages: pure data, without torch.

A video is a row of latents, cut into blocks. Step k moves a block from version k to version k + 1;
version 0 is noise, version `steps` is clean.
"""

from dataclasses import dataclass

Key = tuple[int, int, int]  # block, version, take: what an entry is kept under


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A run of one block's latents in a window, numbered as in the video."""

    block: int
    start: int
    stop: int
    step: int  # the version that is read
    write: bool  # moved one step; otherwise context, recomputed and dropped
    noised: bool = False  # clean context that is read with a little noise

    @property
    def num_latents(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Keys and values of a run of latents, kept by every stage for its own layers."""

    block: int
    step: int  # the version they were made of
    start: int
    stop: int
    take: int = 0  # how many new prompts they were made again for

    @property
    def key(self) -> Key:
        return self.block, self.step, self.take

    @property
    def num_latents(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkState:
    """A walk through a schedule between two ticks: what follows is known from it."""

    number: int = 0  # of the next task
    tick: int = 0
    next_block: int = 0  # to be admitted
    in_flight: tuple[tuple[int, int], ...] = ()  # blocks, and the steps they have taken
    kept: tuple[int, ...] = ()  # blocks whose latents are still read
    entries: tuple[Entry, ...] = ()  # of clean blocks
    take: int = 0  # new prompts that entries were made again for

    @property
    def oldest(self) -> int:
        """Blocks before this one are read by nobody any more."""
        # of a section at the beginning, all that is kept may be what comes after it
        return min((*self.kept, self.next_block))

    @property
    def oldest_prompt(self) -> int:
        """Blocks before this one need no prompt of their own any more."""
        if not self.number:  # what is there may have to be run for its keys and values
            return self.oldest
        return min((*dict(self.in_flight), self.next_block))


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One pass of one window through all layers, numbered in the one order all stages keep."""

    number: int
    tick: int  # sweep over the blocks in flight
    parts: tuple[Part, ...]  # in order of time
    reads: tuple[Entry, ...] = ()  # cached context; a slice of the entry of the same key
    stores: tuple[Entry, ...] = ()  # to be kept of this window
    frees: tuple[Key, ...] = ()  # keys that nobody reads after this task
    positions: tuple[int, ...] = ()  # of every latent of the parts
    context_positions: tuple[int, ...] = ()  # of every latent of the reads
    admits: tuple[int, ...] = ()  # blocks that begin with this task
    finishes: tuple[int, ...] = ()  # blocks that are clean after it
    drops: tuple[int, ...] = ()  # blocks whose latents nobody reads after it
    commit: bool = False  # for its keys and values alone: no velocity is wanted
    text_of: int | None = None  # block whose prompt is read; none: the last part's

    @property
    def num_latents(self) -> int:
        return sum(part.num_latents for part in self.parts)

    @property
    def num_cached(self) -> int:
        """Latents of the cached context."""
        return sum(entry.num_latents for entry in self.reads)

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """The latents of its parts and of its cached context: first, and behind the last."""
        parts = [(part.start, part.stop) for part in self.parts]
        return (*parts, *((entry.start, entry.stop) for entry in self.reads))

    @property
    def written(self) -> tuple[Part, ...]:
        return tuple(part for part in self.parts if part.write)
