"""What always holds of a block schedule, whatever its numbers (invariants 1 to 8 of the design).

Every test walks the stream of tasks with books of its own, and asks the schedule for fields only.
"""

from collections import Counter
from dataclasses import replace
from itertools import groupby, islice, pairwise

from any_schedule import first_tasks, schedules
from hypothesis import assume, given, settings

from longreel.parallel.tasks import Entry, Part, Task
from longreel.pipeline.schedule import BlockSchedule

SETTINGS = settings(max_examples=40, deadline=None)
CLASSIC = ("dualparal", "dualparal-grouped", "dualparal-staggered")


def is_finite(schedule: BlockSchedule) -> bool:
    return schedule.num_latents is not None


def ticks(tasks: list[Task]) -> list[list[Task]]:
    return [list(group) for _, group in groupby(tasks, key=lambda task: task.tick)]


@SETTINGS
@given(schedules())
def test_every_block_takes_every_step_once_in_order_and_as_a_whole(schedule):
    done = Counter()
    latents = Counter()
    for task in first_tasks(schedule):
        assert task.commit == (not task.written)
        for part in task.written:
            assert part.step == done[part.block], "a step is repeated or left out"
            assert (part.start, part.stop) == schedule.bounds(part.block)
            done[part.block] += 1
            latents.update(range(part.start, part.stop))
    assert max(done.values()) <= schedule.steps
    if is_finite(schedule):
        made = range(schedule.first, schedule.num_latents)
        assert latents == dict.fromkeys(made, schedule.steps)


@SETTINGS
@given(schedules(open_ended=False))
def test_blocks_cover_the_video_and_none_is_under_half_or_over_one_and_a_half(schedule):
    spans = [schedule.bounds(block) for block in range(schedule.num_blocks)]
    assert [start for start, _ in spans] == [0, *(stop for _, stop in spans[:-1])]
    assert spans[-1][1] == schedule.num_latents
    given, made = spans[: schedule.first_block], spans[schedule.first_block :]
    assert made[0][0] == schedule.first
    assert all(stop - start == schedule.size for start, stop in [*given[1:], *made[:-1]])
    assert all(stop - start <= schedule.size for start, stop in given)
    last = spans[-1][1] - spans[-1][0]
    assert 2 * last <= 3 * schedule.size
    assert 2 * last >= schedule.size or len(made) == 1
    for latent in range(schedule.num_latents):
        start, stop = spans[schedule.block_at(latent)]
        assert start <= latent < stop


@SETTINGS
@given(schedules())
def test_a_window_reads_the_newest_version_and_an_earlier_task_made_it(schedule):
    newest = Counter(dict.fromkeys(schedule.beginning.kept, schedule.steps))
    for task in first_tasks(schedule):
        for part in task.parts:
            assert part.step == newest[part.block]
            start, stop = schedule.bounds(part.block)
            assert start <= part.start < part.stop <= stop
            assert not part.noised or (part.step == schedule.steps and not part.write)
        newest.update(part.block for part in task.written)


@SETTINGS
@given(schedules())
def test_tasks_are_numbered_in_order_and_walked_alike_every_time(schedule):
    tasks = first_tasks(schedule)
    assert [task.number for task in tasks] == list(range(len(tasks)))
    numbers = [task.tick for task in tasks]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(numbers[-1] + 1))
    assert tasks == first_tasks(schedule)


@SETTINGS
@given(schedules())
def test_blocks_in_flight_are_neighbours_and_no_more_than_allowed(schedule):
    active: set[int] = set()
    begun = finished = schedule.first_block
    for tick in ticks(first_tasks(schedule)):
        new = sorted(block for task in tick for block in task.admits)
        assert new == list(range(begun, begun + len(new)))
        begun += len(new)
        active.update(new)
        assert active == set(range(finished, begun))
        assert len(active) <= schedule.max_inflight
        moved = {part.block for task in tick for part in task.written}
        assert moved <= active
        gone = {block for task in tick for block in task.finishes}
        active -= gone
        finished += len(gone)


@SETTINGS
@given(schedules())
def test_a_block_steps_only_when_its_left_neighbour_is_far_enough(schedule):
    starts = burst_starts(schedule) if schedule.burst else []
    done = Counter()
    for tick in ticks(first_tasks(schedule)):
        before = done.copy()
        for part in (part for task in tick for part in task.written):
            gap = schedule.stagger
            if schedule.burst:
                gap = schedule.steps if part.block in starts else 0
            needed = min(schedule.steps, part.step + gap)
            assert part.block == schedule.first_block or before[part.block - 1] >= needed
            done[part.block] += 1


def burst_starts(schedule: BlockSchedule) -> list[int]:
    """First blocks of bursts: as many as have `burst` blocks, sizes equal, larger ones first."""
    if schedule.num_blocks is None:
        return list(range(0, 1000, schedule.burst))
    rest = schedule.num_blocks - schedule.first_block
    bursts, starts = max(1, rest // schedule.burst), [schedule.first_block]
    for left in range(bursts, 1, -1):
        share = -(-rest // left)
        starts.append(starts[-1] + share)
        rest -= share
    return starts


@SETTINGS
@given(schedules())
def test_blocks_finish_in_order_once(schedule):
    seen: list[int] = []
    for tick in ticks(first_tasks(schedule)):
        now = []
        for task in tick:
            # on its last step, not before and not after
            last = {part.block for part in task.written if part.step + 1 == schedule.steps}
            assert set(task.finishes) == last
            now += task.finishes
        seen += sorted(now)  # a burst's last sweep, too, is served newest first
    first = schedule.first_block
    assert seen == list(range(first, first + len(seen)))
    assert not is_finite(schedule) or seen[-1] + 1 == schedule.num_blocks


@SETTINGS
@given(schedules())
def test_cached_context_was_stored_by_an_earlier_task_and_is_not_yet_freed(schedule):
    held: dict[tuple[int, int], Entry] = {}
    for task in first_tasks(schedule):
        for entry in task.reads:
            assert held[entry.key].start <= entry.start < entry.stop <= held[entry.key].stop
        for entry in task.stores:
            assert entry.key not in held
            made = [part for part in task.parts if (part.block, part.step) == entry.key[:2]]
            assert any(p.start <= entry.start and entry.stop <= p.stop for p in made)
            held[entry.key] = entry
        for key in task.frees:
            del held[key]
        near = schedule.sink + schedule.clean + (schedule.right if not schedule.commits else 0)
        assert sum(entry.num_latents for entry in held.values()) <= near + 3 * schedule.size
    if is_finite(schedule) and not schedule.commits:
        assert not held


@SETTINGS
@given(schedules())
def test_what_is_stored_is_read_later(schedule):
    assume(schedule.right or schedule.clean >= 1)
    tasks = first_tasks(schedule)
    read = {entry.key for task in tasks for entry in task.reads}
    # what a block left may be made again for the next one, if that brings a prompt
    read |= {key for task in tasks if task.text_of is not None for key in task.frees}
    stored = [entry.key for task in tasks for entry in task.stores]
    if not is_finite(schedule):
        stored = stored[: -schedule.max_inflight - 1]
    assert set(stored) <= read


@SETTINGS
@given(schedules())
def test_latents_are_dropped_once_after_their_last_reader_and_soon(schedule):
    reach = schedule.left + (schedule.right if schedule.extend_left else 0)
    bound = schedule.max_inflight + -(-reach // schedule.size) + 1
    if schedule.recache:  # what is cached may be run again
        bound += -(-(schedule.clean + schedule.sink) // schedule.size) + 1
    kept = schedule.beginning.kept
    bound += len(kept)
    begun, dropped = 0, set()
    for task in first_tasks(schedule):
        begun += len(task.admits)
        assert not dropped & {part.block for part in task.parts}, "read after it was dropped"
        assert not dropped & set(task.drops)
        dropped.update(task.drops)
        assert schedule.recache or dropped >= set(
            range(schedule.first_block, max(dropped, default=0))
        )
        assert begun - len(dropped) <= bound
    if is_finite(schedule):
        assert dropped == {*kept, *range(schedule.first_block, schedule.num_blocks)}


@SETTINGS
@given(schedules(policies=("causal",)))
def test_a_new_prompt_is_in_all_that_its_first_block_reads_and_in_nothing_before(schedule):
    assume(schedule.recache)
    prompts = [0, *schedule.new_prompts]
    made: dict[tuple[int, int, int], int] = {}  # with which block's prompt
    for task in first_tasks(schedule):
        reader = task.parts[-1].block if task.text_of is None else task.text_of
        prompt = max(block for block in prompts if block <= reader)
        assert {made[entry.key] for entry in task.reads} <= {prompt}
        assert (task.text_of is None) or (task.commit and task.text_of in schedule.new_prompts)
        assert all(entry.stop <= task.parts[0].start for entry in task.reads)
        made.update((entry.key, prompt) for entry in task.stores)


@SETTINGS
@given(schedules(policies=("causal",), open_ended=False))
def test_making_keys_again_adds_a_pass_for_each_block_in_sight_and_nothing_else(schedule):
    assume(schedule.recache)
    tasks = first_tasks(schedule)
    plain = first_tasks(replace(schedule, new_prompts=()))
    again = [task for task in tasks if task.text_of is not None]
    assert len(tasks) == len(plain) + len(again)
    for block in schedule.new_prompts:
        start = schedule.bounds(block)[0]
        sight = {
            schedule.block_at(i)
            for i in range(start)
            if i < schedule.sink or i >= start - schedule.clean
        }
        passes = [task.parts[0].block for task in again if task.text_of == block]
        assert passes == sorted(sight)
    for task in tasks:
        if task.admits[:1] and task.admits[0] in schedule.new_prompts and schedule.commits:
            assert tasks[task.number - 1].text_of == task.admits[0]  # the last thing before it


@SETTINGS
@given(schedules())
def test_positions_count_up_within_the_window(schedule):
    most = 0
    for task in first_tasks(schedule):
        own = [i for part in task.parts for i in range(part.start, part.stop)]
        context = [i for entry in task.reads for i in range(entry.start, entry.stop)]
        latents = own + context
        places = [*task.positions, *task.context_positions]
        assert len(set(latents)) == len(latents) == len(places)
        in_time = [place for _, place in sorted(zip(latents, places, strict=True))]
        shifted = int(schedule.keep_first and min(latents) > 0)
        assert in_time == list(range(shifted, shifted + len(latents)))
        assert list(task.positions) == sorted(task.positions)
        most = max(most, in_time[-1])
    own = schedule.size + schedule.size // 2
    if schedule.joint != 1:
        own = schedule.max_inflight * schedule.size + schedule.size // 2
    context = schedule.left + schedule.right + schedule.clean + schedule.sink
    assert most <= own + context + schedule.size


@SETTINGS
@given(schedules(policies=("forcing",)))
def test_a_joint_window_is_never_longer_than_it_may_be(schedule):
    assert all(task.num_latents <= schedule.window for task in first_tasks(schedule))


@settings(max_examples=25, deadline=None)
@given(schedules(open_ended=True))
def test_an_endless_video_repeats_itself_up_to_a_shift(schedule):
    assume(not is_finite(schedule))
    reach = schedule.left + schedule.right + schedule.clean + schedule.sink
    settled = schedule.max_inflight + -(-reach // schedule.size) + 2
    sweeps = ticks(list(islice(schedule.tasks(), 700)))[:-1]
    seen: dict[tuple[int, ...], tuple[int, int]] = {}  # steps done in the queue: tick, first block
    done, first = Counter(), 0
    for i, sweep in enumerate(sweeps):
        for task in sweep:
            done.update(part.block for part in task.written)
            first += len(task.finishes)
        state = tuple(done[block] for block in range(first, max(done) + 1))
        if first < settled:
            continue
        if state in seen:
            break
        seen[state] = i + 1, first
    earlier, blocks = seen[state][0], first - seen[state][1]
    assert blocks <= max(schedule.max_inflight, schedule.burst)
    assert len(sweeps) - i > schedule.steps
    for before, after in zip(sweeps[earlier:], sweeps[i + 1 :], strict=False):
        assert [shift(task, schedule, blocks) for task in before] == [
            shift(task, schedule, 0) for task in after
        ]


def shift(task: Task, schedule: BlockSchedule, blocks: int) -> Task:
    """The task with every block renamed, but for the sink's."""
    latents = blocks * schedule.size

    def move(run: Part | Entry) -> Part | Entry:
        if run.start < schedule.sink:
            return run
        start, stop = run.start + latents, run.stop + latents
        return replace(run, block=run.block + blocks, start=start, stop=stop)

    return replace(
        task,
        number=0,
        tick=0,
        parts=tuple(map(move, task.parts)),
        reads=tuple(map(move, task.reads)),
        stores=tuple(map(move, task.stores)),
        frees=tuple((block + blocks, step, take) for block, step, take in task.frees),
        admits=tuple(block + blocks for block in task.admits),
        finishes=tuple(block + blocks for block in task.finishes),
        drops=tuple(block + blocks for block in task.drops),
    )


@SETTINGS
@given(schedules(open_ended=False))
def test_the_last_block_sees_as_much_of_the_past_as_its_queue_can_give(schedule):
    assume(schedule.num_blocks > schedule.first_block + 1 and not schedule.after)
    seen = Counter()  # fewest latents before any window that a block is written in
    for task in first_tasks(schedule):
        if task.written:
            runs = [*task.parts, *task.reads]
            for part in task.written:
                latents = sum(run.num_latents for run in runs if run.stop <= part.start)
                seen[part.block] = min(seen.get(part.block, latents), latents)
    last = schedule.num_blocks - 1
    most = schedule.clean + latents_before(schedule, last, has_right=False)
    assert seen[last] >= min(schedule.bounds(last)[0], most)


def latents_before(schedule: BlockSchedule, block: int, *, has_right: bool) -> int:
    """Without a right neighbour those to the left make up for it, while nobody has to wait."""
    start, extra = schedule.bounds(block)[0], 0
    if schedule.extend_left and not has_right:
        extra = schedule.right
        starts = [*burst_starts(schedule), schedule.num_blocks or 10**6]
        length = next(stop - first for first, stop in pairwise(starts) if stop > block)
        if length > schedule.depth:
            room = (length - schedule.depth) * schedule.size
            extra = max(0, min(extra, room - schedule.left))
    return min(start, schedule.left + extra)


@SETTINGS
@given(schedules(policies=("dualparal-grouped",)))
def test_a_window_of_a_burst_has_one_level(schedule):
    starts = burst_starts(schedule)
    for task in first_tasks(schedule):
        (own,) = task.written
        first = max(start for start in starts if start <= own.block)
        for run in (*task.parts, *task.reads):
            clean = run.block < first or run.block == schedule.num_blocks
            assert run.step == (schedule.steps if clean else own.step)


@SETTINGS
@given(schedules(policies=CLASSIC))
def test_every_block_has_its_neighbour_to_the_right_while_that_is_in_flight(schedule):
    assume(schedule.right)
    for tick in ticks(first_tasks(schedule)):
        moving = {part.block for task in tick for part in task.written}
        for task in tick:
            (own,) = task.written
            right = [entry for entry in task.reads if entry.block == own.block + 1]
            assert len(right) == (own.block + 1 in moving) == len(task.reads)
            behind = [part for part in task.parts if part.start >= own.stop]
            assert [part.block for part in behind] == [own.block + 1] * bool(behind)
            assert bool(behind) == (schedule.after > 0 and own.block + 1 == schedule.num_blocks)
            assert sum(part.num_latents for part in behind) in (0, schedule.after)
            left = sum(part.num_latents for part in task.parts if part.stop <= own.start)
            has_right = bool(right or behind)
            assert left == latents_before(schedule, own.block, has_right=has_right)
