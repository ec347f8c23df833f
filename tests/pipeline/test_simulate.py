"""The simulator: figures derived by hand, and a second event loop."""

from dataclasses import replace
from math import ceil

import pytest
from any_schedule import schedules
from hypothesis import given, settings
from hypothesis import strategies as st

from longreel.configs.schema import BlocksConfig
from longreel.models.arch import ARCHS
from longreel.parallel.tasks import Task
from longreel.pipeline.cost import (
    Bytes,
    Cost,
    Seconds,
    model_cost,
)
from longreel.pipeline.policies import make_schedule
from longreel.pipeline.schedule import BlockSchedule
from longreel.pipeline.simulate import count_slots, measure, simulate
from longreel.pipeline.timeline import play

SETTINGS = settings(max_examples=30, deadline=None)


def blocks_of(policy: str, num_blocks: int, steps: int, **numbers: int) -> BlockSchedule:
    blocks = BlocksConfig(policy=policy, **numbers)
    return make_schedule(blocks, steps, num_blocks * (blocks.size or 8))


def plain_slots(tasks: list[Task], num_stages: int) -> list[int]:
    """When each task is over, by looking at every stage in every slot."""
    ready = {}  # block, version: slot from which the first stage may read it
    over = [[-1] * num_stages for _ in tasks]
    turn = [0] * num_stages
    slot = 0
    while turn[-1] < len(tasks):
        for stage in range(num_stages):
            if turn[stage] == len(tasks):
                continue
            task = tasks[turn[stage]]
            if stage:
                may_run = 0 <= over[turn[stage]][stage - 1] <= slot
            else:
                reads = [(part.block, part.step) for part in task.parts if part.step]
                may_run = all(key in ready and ready[key] <= slot for key in reads)
            if may_run:
                over[turn[stage]][stage] = slot + 1
                turn[stage] += 1
                if stage + 1 == num_stages:
                    ready.update({(p.block, p.step + 1): slot + 1 for p in task.written})
        slot += 1
    return [row[-1] for row in over]


@SETTINGS
@given(schedules(open_ended=False, sections=False), st.integers(1, 5))
def test_times_are_those_of_a_loop_over_slots(schedule, num_stages):
    tasks = list(schedule.tasks())
    ends = plain_slots(tasks, num_stages)
    timeline = play(schedule, num_stages, Cost(num_layers=num_stages))
    assert [stops[-1] for stops in timeline.stops] == ends
    slots = count_slots(schedule, num_stages)
    assert slots.total_slots == ends[-1]
    assert slots.idle_slots == ends[-1] - len(tasks)
    assert slots.stall_slots == slots.idle_slots - (num_stages - 1)
    first = next(end for end, task in zip(ends, tasks, strict=True) if 0 in task.finishes)
    assert slots.first_block_slots == first


@pytest.mark.parametrize("num_stages", range(2, 9))
def test_the_classic_queue_idles_as_derived(num_stages):
    """(N-1)^2 where the left neighbour may be read as it happens to be; N^2-1 where it may not."""
    slots = count_slots(blocks_of("dualparal", 12, 10), num_stages)
    assert slots.total_slots == 12 * 10 + num_stages**2 - 1
    assert slots.idle_slots == num_stages**2 - 1


@pytest.mark.parametrize("num_stages", range(2, 9))
@pytest.mark.parametrize("num_blocks", [33, 36])
def test_grouped_blocks_never_let_the_ring_wait(num_stages, num_blocks):
    for depth in {num_stages, 8}:
        schedule = blocks_of("dualparal-grouped", num_blocks, 10, depth=depth)
        slots = count_slots(schedule, num_stages)
        assert slots.total_slots == num_blocks * 10 + num_stages - 1
        assert (slots.idle_slots, slots.stall_slots) == (num_stages - 1, 0)
        assert slots.late_slots == 0


@SETTINGS
@given(st.data())
def test_grouped_blocks_never_wait_whatever_their_context(data):
    size, depth = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 5))
    left, right = data.draw(st.integers(0, 14)), data.draw(st.integers(0, size))
    enough = depth + max(1, ceil(left / size))
    schedule = blocks_of(
        "dualparal-grouped",
        data.draw(st.integers(enough, 3 * enough)),
        data.draw(st.integers(1, 6)),
        size=size,
        left=left,
        right=right,
        depth=depth,
    )
    slots = count_slots(schedule, data.draw(st.integers(1, depth)))
    assert (slots.stall_slots, slots.late_slots) == (0, 0)


def test_the_figures_that_were_promised_for_eight_stages_and_fifty_steps():
    classic = count_slots(blocks_of("dualparal", 33, 50), 8)
    assert (classic.total_slots, classic.idle_slots) == (1713, 63)
    grouped = count_slots(blocks_of("dualparal-grouped", 33, 50), 8)
    assert (grouped.total_slots, grouped.first_block_slots) == (1657, 557)
    even = count_slots(blocks_of("dualparal-grouped", 36, 50), 8)
    assert (even.total_slots, even.first_block_slots) == (1807, 457)


@pytest.mark.parametrize("num_blocks", [33, 36])
def test_no_block_of_a_burst_comes_late_when_played_at_a_block_per_fifty_slots(num_blocks):
    schedule = blocks_of("dualparal-grouped", num_blocks, 50)
    tasks = list(schedule.tasks())
    ends = plain_slots(tasks, 8)
    there = {task.finishes[0]: end for end, task in zip(ends, tasks, strict=True) if task.finishes}
    assert all(there[block] <= there[0] + 50 * block for block in range(num_blocks))


@pytest.mark.parametrize("num_blocks", [33, 36])
def test_at_most_two_bursts_are_in_flight(num_blocks):
    schedule = blocks_of("dualparal-grouped", num_blocks, 50)
    timeline = play(schedule, 8, Cost(num_layers=8))
    burst = {block: schedule.burst_of(block).start for block in range(num_blocks)}
    begins, ends = {}, {}
    for task, starts, home in zip(timeline.tasks, timeline.starts, timeline.home, strict=True):
        begins.setdefault(burst[task.written[0].block], starts[0])
        ends[burst[task.written[0].block]] = home
    at_once = [sum(begins[b] <= at < ends[b] for b in begins) for at in begins.values()]
    assert max(at_once) == 2


def test_a_slow_decoder_and_not_the_stages_sets_the_pace():
    seconds = Seconds(task=1.0, decode_latent=10.0)
    report = simulate(blocks_of("causal", 20, 2, size=3), 1, Cost(num_layers=4, seconds=seconds))
    assert report.first_block_s == 2
    assert report.first_frame_s == 12
    assert report.total_s == 2 + 60 * 10
    assert report.steady_frames_per_s == pytest.approx(0.4)
    assert report.frames_per_s == pytest.approx((1 + 59 * 4) / 602)
    assert report.late_s == 0


def test_one_stage_takes_the_sum_of_its_tasks():
    """Two latents in one block: the window is two latents, each token sees both."""
    seconds = Seconds(task=0.5, token=0.01, pair=0.001, embed_token=0.02, head_token=0.03)
    cost = Cost(num_layers=3, tokens_per_latent=5, passes=2, seconds=seconds)
    report = simulate(make_schedule(BlocksConfig(policy="whole"), 4, 2), 1, cost)
    one_pass = 0.5 + 10 * (3 * (0.01 + 10 * 0.001) + 0.02 + 0.03)
    assert report.total_s == pytest.approx(4 * 2 * one_pass)
    assert report.idle_share == (pytest.approx(0.0),)
    assert (report.hop_bytes, report.sent_bytes) == (0, 0)


def test_a_task_costs_its_ends_and_the_copies_of_what_stages_hand_on():
    """Six layers on three stages, a window of two latents: 1 s to put it together, 2 s to step,
    and 2 bytes into each link and out of it."""
    seconds = Seconds(window=1.0, step=2.0, copy=10.0)
    cost = Cost(num_layers=6, seconds=seconds, sizes=Bytes(token=1))
    (task, *_) = make_schedule(BlocksConfig(policy="whole"), 4, 2).tasks()
    stages = [range(2), range(2, 4), range(4, 6)]
    assert [cost.pass_seconds(task, 0, layers) for layers in stages] == [21.0, 40.0, 22.0]
    assert cost.pass_seconds(task, 0, range(6)) == 3.0
    commit = replace(task, commit=True)
    assert cost.pass_seconds(commit, 0, range(4, 6)) == 20.0  # nothing steps
    guided = replace(cost, passes=2)  # the window is put together before the first, then stepped
    assert [guided.pass_seconds(task, i, range(6)) for i in range(2)] == [1.0, 2.0]


def test_cached_context_costs_pairs_and_no_tokens():
    cost = Cost(num_layers=1, tokens_per_latent=10, seconds=Seconds(token=0.0, pair=1.0))
    schedule = blocks_of("dualparal", 2, 2, size=4, left=0, right=4)
    full = [task for task in schedule.tasks() if task.reads]
    assert {cost.layer_seconds(task) for task in full} == {40 * 80}


def test_links_carry_one_window_at_a_time_beside_the_computing():
    """Two stages: a task takes 1 s, a window 2 s on the link, latents 3 s, and 1 s passes by."""
    cost = Cost(
        num_layers=2,
        seconds=Seconds(task=1.0, hop=1.0, byte=1.0),
        sizes=Bytes(token=2, latent=3),
    )
    timeline = play(blocks_of("buffer", 1, 2, size=1, stagger=0), 2, cost)
    assert timeline.starts == ((0.0, 4.0), (9.0, 13.0))
    assert timeline.home == (9.0, 18.0)
    timeline = play(blocks_of("dualparal", 2, 1, size=1, left=0, right=0), 2, cost)
    assert timeline.starts == ((0.0, 4.0), (1.0, 6.0))
    assert [visit.arrival for (visit,) in timeline.visits[1]] == [0.0, 6.0]


def test_one_stage_is_at_a_pass_of_a_task_while_the_next_is_at_another():
    """Two steps of one window, a slot a pass: each takes three slots on two stages, not four."""
    schedule = blocks_of("buffer", 1, 2, size=1, stagger=0)
    timeline = play(schedule, 2, Cost(num_layers=2, passes=2))
    assert timeline.starts == ((0.0, 1.0), (3.0, 4.0))
    assert timeline.stops == ((2.0, 3.0), (5.0, 6.0))
    assert measure(timeline).idle_share == (pytest.approx(2 / 6),) * 2
    batched = play(schedule, 2, Cost(num_layers=2, samples=2, seconds=Seconds(token=1.0)))
    assert batched.stops[-1] == (6.0, 8.0)


@SETTINGS
@given(schedules(open_ended=False, sections=False), st.integers(1, 4))
def test_passes_in_turn_are_never_later_than_one_of_both(schedule, num_stages):
    sizes = Bytes(token=3)
    both = Cost(num_layers=num_stages, samples=2, seconds=Seconds(token=1.0), sizes=sizes)
    one = play(schedule, num_stages, both)
    two = play(schedule, num_stages, replace(both, passes=2, samples=1))
    assert all(ours <= theirs for ours, theirs in zip(two.home, one.home, strict=True))
    ours, theirs = measure(two), measure(one)
    assert ours.sent_bytes == theirs.sent_bytes
    assert all(a <= b for a, b in zip(ours.peak_bytes, theirs.peak_bytes, strict=True))


@SETTINGS
@given(schedules(open_ended=False, sections=False), st.integers(1, 4))
def test_branches_on_free_links_keep_step_in_twice_the_devices(schedule, num_stages):
    one = play(schedule, num_stages, Cost(num_layers=num_stages))
    two = play(schedule, num_stages, Cost(num_layers=num_stages, branches=2))
    assert (one.num_devices, two.num_devices) == (num_stages, 2 * num_stages)
    assert two.num_stages == num_stages
    assert two.home == one.home
    for ours, theirs in ((two.starts, one.starts), (two.stops, one.stops)):
        assert ours == tuple(row * 2 for row in theirs)


def test_a_branch_of_its_own_costs_a_window_there_and_a_prediction_back():
    """Two tasks of one latent on one stage: 1 s to compute, 4 + 1 s to the other branch, which
    computes for 1 s, and 3 s back."""
    cost = Cost(
        num_layers=1,
        branches=2,
        seconds=Seconds(task=1.0, byte=1.0),
        sizes=Bytes(token=2, latent=3, window=4, text=1, layer=100),
    )
    timeline = play(blocks_of("buffer", 1, 2, size=1, stagger=0), 1, cost)
    assert timeline.starts == ((0.0, 5.0), (9.0, 14.0))
    assert timeline.home == (9.0, 18.0)
    report = simulate(timeline.schedule, 1, cost)
    assert report.total_s == 18.0
    assert (report.num_stages, report.num_devices) == (1, 2)
    assert report.idle_share == (pytest.approx(16 / 18),) * 2
    assert report.branch_bytes == 2 * (4 + 1 + 3)
    assert (report.hop_bytes, report.sent_bytes) == (0, 0)
    # the window until it is used; a window of tokens while it is computed
    assert report.peak_bytes[1] == 100 + 4 + 1 + 2


def test_each_branch_has_half_the_work_and_half_the_bytes():
    schedule = blocks_of("dualparal", 12, 4)

    def report(passes, branches, num_stages=4):
        cost = model_cost(
            ARCHS["wan2.1-t2v-14b"],
            height=480,
            width=832,
            dtype="bfloat16",
            passes=passes,
            branches=branches,
            seconds=Seconds(token=1.0),
        )
        return simulate(schedule, num_stages, cost)

    assert report(1, 2, num_stages=1).total_s == report(2, 1, num_stages=1).total_s / 2
    shared, split = report(2, 1), report(1, 2)
    # not quite half: while one chain fills, it is at both passes of a task
    assert shared.total_s / 2 < split.total_s < shared.total_s / 1.6
    assert split.hop_bytes == shared.hop_bytes
    assert split.sent_bytes == shared.sent_bytes / 2
    assert len(split.peak_bytes) == 2 * len(shared.peak_bytes)
    for one, other, both in zip(
        split.peak_bytes[:4], split.peak_bytes[4:], shared.peak_bytes, strict=True
    ):
        assert other <= one < both  # the weights are there twice, keys and values are shared out
    # latents of 60 x 104 in float32, their 512 tokens of text in bfloat16, for every task
    windows = [task.num_latents for task in schedule.tasks()]
    latent = 4 * 16 * 60 * 104
    assert split.branch_bytes == 2 * sum(windows) * latent + len(windows) * 512 * 4096 * 2
    assert shared.branch_bytes == 0


def test_stages_that_embed_or_apply_the_head_get_fewer_layers():
    seconds = Seconds(token=1.0, embed_token=3.0, head_token=2.0)
    timeline = play(blocks_of("causal", 2, 2), 3, Cost(num_layers=13, seconds=seconds))
    assert [len(layers) for layers in timeline.layers] == [3, 6, 4]
    first = [b - a for a, b in zip(timeline.starts[0], timeline.stops[0], strict=True)]
    assert first == [18.0, 18.0, 18.0]


def test_memory_adds_up_to_what_was_counted_by_hand():
    """Causal, one latent a block, one of context, no sink: while block 1 commits, its entry and
    block 0's are held, its window, and its latent."""
    sizes = Bytes(token=1, cached_token=10, latent=100, solver=1000, layer=10**5, embed=7, head=9)
    cost = Cost(num_layers=2, sizes=sizes)
    report = simulate(blocks_of("causal", 3, 1, size=1, left=1, sink=0), 1, cost)
    # the solver's memory is gone once the block is clean, before it commits
    stepping = 10 + 1 + 100 + 1000
    assert report.peak_bytes == (2 * 10**5 + 16 + 10 + stepping,)
    two = simulate(blocks_of("causal", 3, 1, size=1, left=1, sink=0), 2, cost)
    first = 10 + 10 + 1 + 100  # in the first stage, when block 1 commits
    assert two.peak_bytes[0] == 10**5 + 7 + first
    assert (two.hop_bytes, two.sent_bytes) == (1, 5)


@settings(max_examples=15, deadline=None)
@given(schedules(open_ended=True), st.integers(1, 4))
def test_no_stage_needs_more_for_a_longer_video(schedule, num_stages):
    if schedule.num_latents is not None:
        return  # whole: a window of everything
    sizes = Bytes(token=3, cached_token=5, latent=7, solver=11)
    cost = Cost(num_layers=4, sizes=sizes)
    reach = schedule.left + schedule.right + schedule.clean + schedule.sink
    settled = 4 * (schedule.max_inflight + ceil(reach / schedule.size) + 2)
    step = schedule.burst or schedule.max_inflight
    peaks = set()
    for num_bursts in (ceil(settled / step), 2 * ceil(settled / step)):
        finite = cut(schedule, num_bursts * step * schedule.size)
        peaks.add(simulate(finite, num_stages, cost).peak_bytes)
    assert len(peaks) == 1


def cut(schedule: BlockSchedule, num_latents: int) -> BlockSchedule:
    return replace(schedule, num_latents=num_latents)
