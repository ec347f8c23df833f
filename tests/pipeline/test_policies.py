"""Each named queue is the one its authors describe, and refuses numbers it would not use."""

from dataclasses import replace
from itertools import groupby

import pytest
from any_schedule import NUMBERS, QUEUES

from longreel.configs.schema import POLICIES, BlocksConfig
from longreel.parallel.tasks import Task
from longreel.pipeline.policies import check_numbers, make_schedule


def walk(policy: str, steps: int, num_latents: int, **numbers: int) -> list[Task]:
    blocks = BlocksConfig(policy=policy, **numbers)
    return list(make_schedule(blocks, steps, num_latents).tasks())


def num_ticks(tasks: list[Task]) -> int:
    return tasks[-1].tick + 1


def windows_of(tasks: list[Task], block: int) -> list[Task]:
    return [task for task in tasks if block in {part.block for part in task.written}]


def test_the_property_tests_know_every_queue():
    assert set(QUEUES) == set(POLICIES) - {"auto"}


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 50])
@pytest.mark.parametrize("policy", QUEUES)
def test_a_queue_suits_any_number_of_steps_by_itself(policy, steps):
    tasks = walk(policy, steps, 41)
    assert sum(part.num_latents for task in tasks for part in task.written) == 41 * steps


def test_whole_is_one_window_of_everything():
    tasks = walk("whole", 7, 21)
    assert [[(p.start, p.stop, p.step) for p in task.parts] for task in tasks] == [
        [(0, 21, step)] for step in range(7)
    ]


def test_dualparal_reads_its_left_one_step_cleaner_and_its_right_one_step_noisier():
    tasks = walk("dualparal", 10, 8 * 20)
    assert num_ticks(tasks) == 10 + 19
    for task in windows_of(tasks, 9)[1:-1]:
        left, own = task.parts
        (right,) = task.reads
        assert (left.step, right.step) == (own.step + 1, own.step - 1)
        assert (left.num_latents, own.num_latents, right.num_latents) == (8, 8, 8)
        assert task.positions == tuple(range(16))
        assert task.context_positions == tuple(range(16, 24))


def test_grouped_blocks_see_what_the_classic_queue_shows_them_at_one_level():
    tasks = walk("dualparal-grouped", 10, 8 * 20, depth=4)
    middle = windows_of(tasks, 7)
    assert [[p.step for p in (*task.parts, *task.reads)] for task in middle] == [
        [step] * 3 for step in range(10)
    ]
    assert {task.positions[0] for task in middle} == {1}


@pytest.mark.parametrize(("num_blocks", "num_latents"), [(20, 16), (24, 24), (3, 24)])
def test_the_last_block_of_a_burst_sees_more_to_its_left_where_none_has_to_wait(
    num_blocks, num_latents
):
    """Bursts of 5 fill a ring of 4 to the last slot, bursts of 6 have one to spare."""
    tasks = walk("dualparal-grouped", 10, 8 * num_blocks, depth=4)
    last = windows_of(tasks, num_blocks - 1)
    assert {sum(part.num_latents for part in task.parts) for task in last} == {num_latents}


def test_bursts_differ_by_one_block_and_the_larger_come_first():
    admitted = [
        sum(len(task.admits) for task in tick)
        for _, tick in groupby(walk("dualparal-grouped", 3, 129 * 8), key=lambda task: task.tick)
    ]
    assert [count for count in admitted if count] == [10, 10, 10] + [9] * 11
    assert sum(admitted) == 129


def test_staggered_blocks_keep_their_distance():
    tasks = walk("dualparal-staggered", 50, 8 * 12, stagger=6)
    steps = {task.tick: task.written[0].step for task in windows_of(tasks, 3)}
    for task in windows_of(tasks, 4):
        assert steps.get(task.tick, task.written[0].step + 6) == task.written[0].step + 6


def test_diagonal_windows_write_back_their_noisier_half():
    tasks = walk("diagonal", 16, 60, size=8)
    middle = [task for task in tasks if 30 <= task.tick < 40]
    assert {(len(task.written), len(task.parts)) for task in middle} == {(4, 8)}
    for task in middle:
        steps = [part.step for part in task.parts]
        assert steps == [min(16, steps[-1] + i) for i in reversed(range(8))]
        assert task.parts[-4:] == task.written
    assert num_ticks(tasks) == 16 + 59


def test_buffer_is_one_window_with_a_chunk_every_few_micro_steps():
    tasks = walk("buffer", 12, 40, size=2, stagger=3, left=2)
    assert num_ticks(tasks) == len(tasks) == 12 + 19 * 3
    full = tasks[30]
    assert [part.step for part in full.written] == [9, 6, 3, 0]
    assert [(part.step, part.num_latents) for part in full.parts if not part.write] == [(12, 2)]


@pytest.mark.parametrize("ar_step", [0, 1, 3, 5, 10])
@pytest.mark.parametrize("num_blocks", [1, 2, 5])
@pytest.mark.parametrize("steps", [10, 50])
def test_forcing_takes_the_rows_of_the_published_timestep_matrix(steps, num_blocks, ar_step):
    tasks = walk("forcing", steps, 5 * num_blocks, size=5, stagger=ar_step)
    assert num_ticks(tasks) == len(tasks) == steps + (num_blocks - 1) * ar_step
    # the matrix itself: a row takes a block to its left neighbour's index less ar_step
    done = [0] * num_blocks
    for task in tasks:
        row = done.copy()
        for block in range(num_blocks):
            left_is_done = block == 0 or done[block - 1] == steps
            index = done[block] + 1 if left_is_done else row[block - 1] - ar_step
            row[block] = min(steps, max(0, index))
        moved = [block for block in range(num_blocks) if row[block] != done[block]]
        assert [part.block for part in task.written] == moved
        done = row
    assert done == [steps] * num_blocks


def test_forcing_in_causal_runs_takes_the_same_tasks():
    assert walk("forcing", 20, 75, causal=5) == walk("forcing", 20, 75)


def test_forcing_stays_within_its_window_and_goes_on_from_a_noised_prefix():
    tasks = walk("forcing", 20, 75, stagger=10)
    assert num_ticks(tasks) == 20 + 14 * 10
    assert max(task.num_latents for task in tasks) <= 25
    prefixes = [part for task in tasks for part in task.parts if part.noised]
    assert {(part.num_latents, part.step) for part in prefixes} == {(5, 20)}


def test_rolling_denoises_a_level_a_block_over_the_sink_and_clean_keys():
    tasks = walk("rolling", 5, 60)
    joint = [task for task in tasks if len(task.written) == 5]
    assert len(joint) == 20 - 4
    for task in joint[3:]:
        assert [part.step for part in task.parts] == [4, 3, 2, 1, 0]
        start = task.parts[0].start
        assert [(e.start, e.stop, e.step) for e in task.reads] == [(0, 3, 5), (start - 3, start, 5)]
        assert task.context_positions == tuple(range(6))
    assert sum(task.commit for task in tasks) == 19


def test_causal_runs_a_block_at_a_time_and_once_more_for_its_clean_keys():
    tasks = walk("causal", 4, 30)
    kinds = [(task.parts[0].block, task.commit) for task in tasks]
    expected = [(block, step == 4) for block in range(10) for step in range(5)]
    assert kinds == expected[:-1]  # nobody reads the last block's
    last = tasks[-1]
    assert [(entry.start, entry.stop) for entry in last.reads] == [
        (0, 3),
        (18, 21),
        (21, 24),
        (24, 27),
    ]
    assert last.positions == (12, 13, 14)


def test_a_new_prompt_takes_the_blocks_in_sight_through_once_more():
    schedule = make_schedule(BlocksConfig(policy="causal", recache="prompt"), 4, 30)
    tasks = list(replace(schedule, new_prompts=(6,)).tasks())
    again = [task for task in tasks if task.text_of is not None]
    assert [(task.parts[0].block, task.text_of) for task in again] == [(b, 6) for b in (0, 3, 4, 5)]
    assert tasks[again[-1].number + 1].admits == (6,)
    assert [[entry.block for entry in task.reads] for task in again] == [[], [0], [0, 3], [0, 3, 4]]
    assert {entry.key for entry in tasks[again[-1].number + 1].reads} == {
        (block, 4, 1) for block in (0, 3, 4, 5)
    }
    assert len(tasks) == len(list(schedule.tasks())) + 4


def test_sink_and_near_context_of_one_block_are_two_runs_of_it():
    tasks = walk("causal", 2, 48, size=8, left=9, sink=3)
    third = windows_of(tasks, 2)[0]
    assert [(e.start, e.stop) for e in third.reads] == [(0, 3), (7, 8), (8, 16)]


def test_a_block_that_nobody_reads_clean_is_not_run_again():
    tasks = walk("causal", 4, 30, left=0)
    assert [task.parts[0].block for task in tasks if task.commit] == [0]


@pytest.mark.parametrize("policy", QUEUES)
@pytest.mark.parametrize("name", ["size", "left", "right", "sink", "stagger", "depth"])
def test_a_number_that_a_queue_would_ignore_is_refused(policy, name):
    fours, twos = (BlocksConfig(policy=policy, **{name: number}) for number in (4, 2))
    if name in NUMBERS[policy]:
        assert make_schedule(fours, 8, 30) != make_schedule(twos, 8, 30)
    else:
        with pytest.raises(ValueError, match=rf"blocks\.{name}=4 would be ignored, .*{policy}"):
            check_numbers(fours)
        assert make_schedule(fours, 8, 30) == make_schedule(twos, 8, 30)


@pytest.mark.parametrize(
    ("policy", "numbers", "num_latents", "words"),
    [
        ("whole", {}, None, "blocks.policy=whole has no end to wait for"),
        ("forcing", {"stagger": 9}, 30, "blocks.stagger=9 .* at most sampling.steps=8"),
        ("dualparal", {"right": 9}, 30, "blocks.right=9 .* at most 8"),
        ("dualparal-grouped", {"size": 4, "right": 5}, 30, "blocks.right=5 .* at most 4"),
        ("forcing", {"size": 4, "left": 4, "causal": 3}, 30, "causal=3 .*size=4, .* as 6"),
        ("forcing", {"size": 6, "left": 4, "causal": 3}, 30, "causal=3 .*left=4, .* as 6"),
        ("forcing", {"causal": 2}, 30, r"blocks\.causal=2 does not divide blocks\.size=5"),
        ("forcing", {"window": 11}, 30, "blocks.window=11 is too short .* at least 12"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_with_what_would(policy, numbers, num_latents, words):
    with pytest.raises(ValueError, match=words):
        make_schedule(BlocksConfig(policy=policy, **numbers), 8, num_latents)


@pytest.mark.parametrize(
    ("policy", "numbers", "words"),
    [
        ("rolling", {"causal": 3}, "blocks.causal=3 would be ignored, .*rolling"),
        ("rolling", {"recache": "prompt"}, "recache=prompt would be ignored, .*rolling"),
        ("forcing", {"levels": "window"}, "blocks.levels=window would be ignored, .*forcing"),
        ("rolling", {"window": 48}, "blocks.window=48 would be ignored, .* does: forcing"),
        ("whole", {"prefix_level": 0.0}, "prefix_level=0.0 would be ignored, .* does: forcing"),
    ],
)
def test_numbers_of_another_queue_are_refused_by_name(policy, numbers, words):
    with pytest.raises(ValueError, match=words):
        check_numbers(BlocksConfig(policy=policy, **numbers))
