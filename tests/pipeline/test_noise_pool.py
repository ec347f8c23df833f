"""A pool of noise frames: the same for every run, and no frame twice within a window."""

from itertools import islice

from hypothesis import given, settings
from hypothesis import strategies as st

from longreel.pipeline.noise_pool import NoisePool
from longreel.pipeline.schedule import BlockSchedule


def _schedule(size, left, right, num_latents, *, extend_left=False):
    return BlockSchedule(
        size=size,
        steps=3,
        num_latents=num_latents,
        burst=2,
        max_inflight=4,
        left=left,
        right=right,
        extend_left=extend_left,
    )


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 6),
    left=st.integers(0, 9),
    right=st.integers(0, 6),  # at most a block
    num_latents=st.integers(1, 60),
    seed=st.integers(0, 2**63 - 1),
    extend_left=st.booleans(),
)
def test_no_noise_frame_stands_twice_in_a_window(size, left, right, num_latents, seed, extend_left):
    schedule = _schedule(size, left, min(right, size), num_latents, extend_left=extend_left)
    pool = NoisePool(seed, schedule)
    frames = [f for block in range(schedule.num_blocks) for f in pool.frames(block)]
    assert len(frames) == num_latents
    for task in schedule.tasks():
        spans = [(part.start, part.stop) for part in task.parts]
        spans += [(entry.start, entry.stop) for entry in task.reads]
        window = [frame for span in spans for frame in frames[slice(*span)]]
        assert len(set(window)) == len(window)


@given(seed=st.integers(0, 2**63 - 1), block=st.integers(0, 30))
def test_a_block_has_the_same_frames_whoever_asks_first(seed, block):
    schedule = _schedule(4, 4, 2, None)
    assert NoisePool(seed, schedule).frames(block) == _asked_in_order(seed, schedule)[block]


def test_the_pool_is_finite_and_shuffled_by_seed():
    schedule = _schedule(4, 4, 4, None)
    frames = [_asked_in_order(seed, schedule) for seed in (1, 2)]
    assert frames[0][0] == frames[1][0] == (0, 1, 2, 3)
    assert frames[0][1:] != frames[1][1:]
    assert max(max(block) for block in frames[0]) < 4 + 4 + 6 + 6


def _asked_in_order(seed, schedule):
    pool = NoisePool(seed, schedule)
    return [pool.frames(block) for block in islice(range(31), 31)]
