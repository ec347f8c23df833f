"""The block schedule: in which order which blocks take which step, and what each step can see.

A pure function of its fields: the same fields give the same stream of tasks, whatever runs them.
Every queue of the field is one setting of these fields (policies.py).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from ..parallel.tasks import Task, WalkState
from .walk import Walk


@dataclass(frozen=True, kw_only=True)
class BlockSchedule:
    """Blocks of `size` latents that take `steps` steps each.

    The last block of a finite video takes what remains: from half a block to one and a half.
    Of a video that is there already, latents from `first` to `num_latents` are made: those before
    them count as clean blocks that end there, and `after` latents behind them as one more.
    """

    size: int
    steps: int
    num_latents: int | None  # none: until somebody stops
    first: int = 0  # latents that are there before those to be made
    after: int = 0  # latents that are there behind them: context of the last block
    stagger: int = 1  # steps that the block to the left must be ahead
    burst: int = 0  # at least so many blocks take every step together; 0: no bursts
    max_inflight: int
    window: int = 0  # latents that a joint forward may hold, its left ones included; 0: any number
    joint: int = 1  # neighbours that share one forward; 0: all that are in flight
    left: int = 0  # latents before the window's own, recomputed with it
    left_noised: bool = False  # clean ones among them are read with a little noise
    right: int = 0  # latents after them: keys and values of this tick
    clean: int = 0  # latents before them: keys and values of their clean version
    sink: int = 0  # first latents of the video: the same, kept for ever
    extend_left: bool = False  # a window without a right neighbour sees that much more to the left
    depth: int = 0  # stages that a burst is made for: it extends no window so far that they wait
    keep_first: bool = False  # position 0 is the video's first latent's, and nobody else's
    causal: int = 0  # runs of so many latents see no later run of their window; 0: all see all
    recache: bool = False  # clean keys and values are made again when the prompt changes
    new_prompts: tuple[int, ...] = ()  # blocks that are known to begin with another prompt
    per_latent: bool = False  # a timestep per latent; otherwise all have the written block's

    def __post_init__(self) -> None:
        assert self.size >= 1
        assert self.steps >= 1
        assert self.num_latents is None or self.num_latents >= 1
        assert 0 <= self.stagger <= self.steps
        assert self.max_inflight >= max(1, self.burst)
        assert not self.right or self.joint == 1
        assert self.right <= self.size, "context after a block comes from its neighbour alone"
        assert not self.causal or not (self.size % self.causal or self.left % self.causal)
        assert not (self.causal and (self.right or self.commits)), "runs take no cached keys"
        assert not self.recache or self.max_inflight == 1, "others in flight read the old prompt"
        assert not (self.commits and (self.burst or self.left or not self.stagger))
        assert not (self.first or self.after) or self.num_latents is not None
        assert self.after <= self.right, "clean latents behind a block are its right context"

    @property
    def commits(self) -> bool:
        """Whether a clean block runs once more, for the keys and values that others read."""
        return bool(self.clean or self.sink)

    @cached_property
    def first_block(self) -> int:
        """The first one that is made."""
        return -(-self.first // self.size)

    @cached_property  # asked for twenty times a task
    def num_blocks(self) -> int | None:
        if self.num_latents is None:
            return None
        made = self.num_latents - self.first
        return self.first_block + max(1, (made + self.size // 2) // self.size)

    def bounds(self, block: int) -> tuple[int, int]:
        """First latent of a block, and the one after its last."""
        start = block * self.size - self._shift
        if self.num_latents is not None and self.num_blocks is not None:
            if block == self.num_blocks:
                return self.num_latents, self.num_latents + self.after
            if block + 1 == self.num_blocks:
                return start, self.num_latents
        return max(0, start), start + self.size

    @cached_property
    def _shift(self) -> int:
        """So many latents the video's first block is short of a whole one."""
        return self.first_block * self.size - self.first

    def gap(self, block: int) -> int:
        """How many steps the block to the left must be ahead of this one."""
        if not self.burst:
            return self.stagger
        return self.steps if block == self.burst_of(block).start else 0

    def block_at(self, latent: int) -> int:
        block = (latent + self._shift) // self.size
        return block if self.num_blocks is None else min(block, self.num_blocks - 1)

    def tasks(
        self,
        stopped: Callable[[], bool] = lambda: False,
        begins_prompt: Callable[[int], bool] | None = None,
    ) -> Iterator[Task]:
        """Every task, in the order all stages keep; no block is admitted once it is stopped.

        `begins_prompt` is asked once about each block, before its first task; none: as planned.
        """
        return self.walk(self.beginning, stopped, begins_prompt).tasks()

    @property
    def beginning(self) -> WalkState:
        """Before the first task: of what is there, it holds what is read."""
        if not (self.first or self.after):
            return WalkState()
        reach = self.clean if self.commits else self.left + self.right * self.extend_left
        kept = [
            block
            for block in range(self.first_block)
            if self.bounds(block)[0] < self.sink or self.bounds(block)[1] > self.first - reach
        ]
        if self.after:
            assert self.num_blocks is not None
            kept.append(self.num_blocks)
        return WalkState(next_block=self.first_block, kept=tuple(kept))

    def walk(
        self,
        start: WalkState,
        stopped: Callable[[], bool] = lambda: False,
        begins_prompt: Callable[[int], bool] | None = None,
    ) -> Walk:
        """The same from where another walk stood between two ticks."""
        return Walk(self, stopped, begins_prompt or self.new_prompts.__contains__, start)

    def burst_of(self, block: int) -> range:
        """Bursts of a finite video differ by at most one block, and the larger come first."""
        if self.num_blocks is None:
            first = block - block % self.burst
            return range(first, first + self.burst)
        made = self.num_blocks - self.first_block
        small, num_larger = divmod(made, max(1, made // self.burst))
        cut = self.first_block + num_larger * (small + 1)
        size, origin = (small + 1, self.first_block) if block < cut else (small, cut)
        first = block - (block - origin) % size
        return range(first, first + size)

    def first_seen(self, block: int, *, has_right: bool) -> int:
        """The first latent recomputed as left context of a block's window."""
        start = self.bounds(block)[0]
        first = max(0, start - self.left)
        if has_right or not self.extend_left:
            return first
        extended = max(0, first - self.right)
        size = len(self.burst_of(block)) if self.burst else 0
        if size > self.depth:
            # a round ago the n-th block to the left was served n - 1 tasks after this one, and its
            # result takes `depth` tasks to come round
            free = self.bounds(max(0, block - (size - self.depth)))[0]
            return min(first, max(extended, free))
        return extended
