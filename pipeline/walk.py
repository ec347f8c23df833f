"""One walk through a block schedule: how far every block in flight is, and so the next task."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..parallel.tasks import Entry, Part, Task, WalkState

if TYPE_CHECKING:
    from .schedule import BlockSchedule


class Walk:
    """The state of one walk through a schedule: how far every block in flight is."""

    def __init__(
        self,
        schedule: "BlockSchedule",
        stopped: Callable[[], bool],
        begins_prompt: Callable[[int], bool],
        start: WalkState,
    ) -> None:
        self._s = schedule
        self._stopped = stopped
        self._begins_prompt = begins_prompt
        self._done = dict(start.in_flight)  # steps taken by blocks in flight
        self._next = start.next_block  # to be admitted
        self._number = start.number
        self._tick = start.tick
        self._kept = [*start.kept]  # blocks whose latents are still held
        self._entries = {entry.block: entry for entry in start.entries}  # of clean blocks
        self._take = start.take  # new prompts that entries were made again for
        self.tick_start = start  # of the tick whose tasks are being taken

    def tasks(self) -> Iterator[Task]:
        if self._s.commits and not self._number:  # what is there has no keys and values yet
            for block in self._kept.copy():
                yield self._commit(block)
        while (admitted := self._admit()) or self._done:
            if admitted and self._s.recache and self._begins_prompt(self._next - 1):
                yield from self._recache(self._next - 1)
            moving = self._moving()
            assert moving, "blocks in flight and none may move"
            for group in self._groups(moving):
                yield self._step(group, moving)
            for block in moving:
                self._done[block] += 1
            finished = [block for block, steps in self._done.items() if steps == self._s.steps]
            for block in finished:
                del self._done[block]
                if self._is_read_clean(block):
                    yield self._commit(block)
            self._tick += 1
            self.tick_start = self._state()

    def _state(self) -> WalkState:
        return WalkState(
            number=self._number,
            tick=self._tick,
            next_block=self._next,
            in_flight=tuple(self._done.items()),
            kept=tuple(self._kept),
            entries=tuple(self._entries.values()),
            take=self._take,
        )

    def _admit(self) -> bool:
        """Take in the blocks that may begin with this tick."""
        s, before = self._s, self._next
        while (
            self._next != s.num_blocks
            and len(self._done) < s.max_inflight
            and self._fits(self._next)
            and self._steps_of(self._next - 1) >= s.gap(self._next)
            and not self._stopped()  # the last word: if not, the block begins
        ):
            self._done[self._next] = 0
            self._kept.append(self._next)
            self._next += 1
        return self._next > before

    def _fits(self, block: int) -> bool:
        """Whether a window of all blocks in flight may grow by this one."""
        s = self._s
        if not s.window or not self._done:
            return True
        first = s.bounds(min(self._done))[0]
        return s.bounds(block)[1] - max(0, first - s.left) <= s.window

    def _moving(self) -> list[int]:
        """Blocks that may take a step in this tick, judged by where all stand at its start."""
        s = self._s
        return [
            block
            for block, steps in self._done.items()
            if self._steps_of(block - 1) >= min(s.steps, steps + s.gap(block))
        ]

    def _steps_of(self, block: int) -> int:
        """Blocks that have left, and the one before the first, are as far as can be."""
        return self._done.get(block, self._s.steps)

    def _groups(self, moving: list[int]) -> list[list[int]]:
        """Runs of neighbours that share a forward, in their order of service: the newest first,
        so that what a block reads of the one before has had the longest time to come round."""
        width = self._s.joint or len(moving)
        runs: list[list[int]] = []
        for block in moving:
            if not runs or len(runs[-1]) == width or runs[-1][-1] != block - 1:
                runs.append([])
            runs[-1].append(block)
        return runs[::-1]

    def _step(self, group: list[int], moving: list[int]) -> Task:
        s = self._s
        own = [
            Part(block=b, start=s.bounds(b)[0], stop=s.bounds(b)[1], step=self._done[b], write=True)
            for b in group
        ]
        first, last = own[0].start, group[-1]
        right = self._right(last) if last + 1 in moving else ()
        behind = self._behind(last)
        seen = s.first_seen(group[0], has_right=bool(right or behind))
        parts = (*self._left(seen, first), *own, *behind)
        reads = (*self._clean(first), *right)
        stores = (self._entry(group[0], s.right),) if group[0] - 1 in moving and s.right else ()
        finishes = tuple(b for b in group if self._done[b] + 1 == s.steps)
        return self._task(
            parts=parts,
            reads=reads,
            stores=stores,
            frees=tuple(entry.key for entry in right),
            admits=tuple(b for b in group if self._done[b] == 0),
            finishes=finishes,
            drops=self._drops() if min(self._done) in finishes else (),
        )

    def _is_read_clean(self, block: int) -> bool:
        """Whether later windows see keys and values of this block's clean version."""
        s = self._s
        return block + 1 != s.num_blocks and (s.clean > 0 or s.bounds(block)[0] < s.sink)

    def _commit(self, block: int) -> Task:
        """One more pass of a clean block, at level 0, for its keys and values."""
        s = self._s
        start, stop = s.bounds(block)
        part = Part(block=block, start=start, stop=stop, step=s.steps, write=False)
        reads = self._clean(start)
        entry = Entry(block=block, step=s.steps, start=start, stop=stop, take=self._take)
        self._entries[block] = entry
        # what the next block can no longer see, nobody sees: windows only move to the right
        lost = [
            b
            for b, old in self._entries.items()
            if old.stop <= stop - s.clean and old.start >= s.sink
        ]
        frees = tuple(self._entries.pop(b).key for b in lost)
        return self._task(
            parts=(part,),
            reads=reads,
            stores=(entry,),
            frees=frees,
            drops=self._drop_before(stop),
            commit=True,
        )

    def _recache(self, block: int) -> Iterator[Task]:
        """What this block will read of clean blocks, made again of them with its own prompt."""
        self._take += 1
        old, self._entries = self._entries, {}
        for b, entry in old.items():
            part = Part(block=b, start=entry.start, stop=entry.stop, step=entry.step, write=False)
            reads = self._clean(entry.start)
            self._entries[b] = replace(entry, take=self._take)
            yield self._task(
                parts=(part,),
                reads=reads,
                stores=(self._entries[b],),
                frees=(entry.key,),
                commit=True,
                text_of=block,
            )

    def _left(self, start: int, end: int) -> tuple[Part, ...]:
        """These latents, block by block, each in its version of this moment."""
        s, parts = self._s, []
        while start < end:
            block = s.block_at(start)
            stop = min(end, s.bounds(block)[1])
            step = self._steps_of(block)
            noised = s.left_noised and step == s.steps
            parts.append(
                Part(block=block, start=start, stop=stop, step=step, write=False, noised=noised)
            )
            start = stop
        return tuple(parts)

    def _right(self, block: int) -> tuple[Entry, ...]:
        return (self._entry(block + 1, self._s.right),) if self._s.right else ()

    def _behind(self, block: int) -> tuple[Part, ...]:
        """Clean latents after the last block to be made."""
        s = self._s
        if not s.after or block + 1 != s.num_blocks:
            return ()
        start, stop = s.bounds(block + 1)
        return (Part(block=block + 1, start=start, stop=stop, step=s.steps, write=False),)

    def _entry(self, block: int, count: int) -> Entry:
        """The first latents of a block in flight."""
        start, stop = self._s.bounds(block)
        stop = min(stop, start + count)
        return Entry(block=block, step=self._done[block], start=start, stop=stop)

    def _clean(self, first: int) -> tuple[Entry, ...]:
        """The sink and the latents before `first`, as far as they are committed."""
        s = self._s
        lost, near = s.sink, max(s.sink, first - s.clean)  # latents between them are past
        seen = []
        for entry in self._entries.values():
            runs = [(entry.start, entry.stop)]
            if lost < near:
                runs = [(entry.start, min(entry.stop, lost)), (max(entry.start, near), entry.stop)]
            seen += [replace(entry, start=a, stop=b) for a, b in runs if a < b]
        return tuple(seen)

    def _drops(self) -> tuple[int, ...]:
        """Blocks that no window reaches any more once this tick, whose last task it is, is over."""
        s = self._s
        unfinished = (block for block, steps in self._done.items() if steps + 1 < s.steps)
        block = min(unfinished, default=self._next)
        if block == s.num_blocks:
            return self._drop_before(s.bounds(block - 1)[1] + s.after)
        if any(b < block and b not in self._entries for b in self._kept if self._is_read_clean(b)):
            return ()  # their commits are yet to come
        extra = s.right if s.extend_left else 0
        return self._drop_before(s.bounds(block)[0] - s.left - extra)

    def _drop_before(self, latent: int) -> tuple[int, ...]:
        """Blocks that end by then, but for those that may yet be run again for a new prompt."""
        again = self._entries if self._s.recache and self._may_begin() else {}
        gone = [b for b in self._kept if self._s.bounds(b)[1] <= latent and b not in again]
        self._kept = [b for b in self._kept if b not in gone]
        return tuple(gone)

    def _may_begin(self) -> bool:
        """Whether a block is yet to be admitted."""
        return self._next != self._s.num_blocks

    def _task(
        self, *, parts: tuple[Part, ...], reads: tuple[Entry, ...] = (), **fields: object
    ) -> Task:
        runs: list[Part | Entry] = [*parts, *reads]
        places = _places(sorted((run.start, run.stop) for run in runs), self._s.keep_first)
        task = Task(
            number=self._number,
            tick=self._tick,
            parts=parts,
            reads=reads,
            positions=_positions(parts, places),
            context_positions=_positions(reads, places),
            **fields,  # type: ignore[arg-type]
        )
        self._number += 1
        return task


def _places(spans: list[tuple[int, int]], keep_first: bool) -> dict[int, int]:
    """Of the first latent of every run: in order of time, latents count up without gaps."""
    at = 1 if keep_first and spans[0][0] > 0 else 0
    places, past = {}, 0
    for start, stop in spans:
        assert start >= past, "a latent stands twice in a window"
        places[start] = at
        at, past = at + stop - start, stop
    return places


def _positions(runs: Sequence[Part | Entry], places: dict[int, int]) -> tuple[int, ...]:
    """Of every latent of these runs."""
    return tuple(
        place
        for run in runs
        for place in range(places[run.start], places[run.start] + run.num_latents)
    )
