"""A chain that goes on from between any two ticks makes the bits it would have made."""

from contextlib import closing
from itertools import islice

import pytest
import torch
from any_schedule import MANY, first_tasks, schedules
from hypothesis import given, settings
from hypothesis import strategies as st
from thread_chain import ThreadBackend
from tiny_blocks import POLICIES, overrides, shallow

from longreel.jobs.render import plan_render
from longreel.parallel.chain import Done
from longreel.parallel.snapshot import Admission, Snapshot
from longreel.parallel.stage import Moved
from longreel.pipeline.backend import LocalBackend
from longreel.pipeline.generator import Generator

VARIANTS = ["causal-recache", "forcing-causal", "dualparal-staggered-wide"]


@settings(max_examples=25, deadline=None)
@given(schedules(), st.integers(1, 7))
def test_a_walk_goes_on_from_any_tick(schedule, every):
    tasks = first_tasks(schedule)
    walk = schedule.walk(schedule.beginning)
    states = {}
    for task in islice(walk.tasks(), MANY):
        states.setdefault(task.tick, walk.tick_start)
    for tick, state in list(states.items())[::every][:12]:
        rest = [task for task in tasks if task.tick >= tick][:40]
        assert list(islice(schedule.walk(state).tasks(), len(rest))) == rest


pytestmark = pytest.mark.usefixtures("tiny_archs")


def plan(policy, *more, frames=33, steps=3, **request):
    settings = overrides(policy, shallow(policy), "model.device=cpu", *more, steps=steps)
    return plan_render("a cat", frames=frames, seed=3, overrides=settings, **request)


def chain_of(plan, backend):
    opened = backend(plan)
    return opened.chain(Generator(plan).sampling(opened))


def run(plan, start=None, wanted=lambda has_finished: False, backend=LocalBackend):
    """What came, in order: blocks and snapshots."""
    with closing(chain_of(plan, backend).run(plan.schedule, start, wanted=wanted)) as steps:
        return [
            item for step in steps for item in (step.finished if isinstance(step, Done) else [step])
        ]


def same(ours, theirs):
    return [m.block for m in ours] == [m.block for m in theirs] and all(
        torch.equal(a.latents_BCTHW, b.latents_BCTHW) for a, b in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("policy", [*POLICIES, *VARIANTS])
def test_every_tick_can_be_gone_on_from(policy):
    request = {"prompt_at": [(1.6, "a dog")]} if policy == "causal-recache" else {}
    ours = plan(policy, frames=29, steps=4, **request)
    came = run(ours, wanted=lambda has_finished: True)
    snapshots = [item for item in came if isinstance(item, Snapshot)]
    assert len(snapshots) >= 3
    # what goes on from the first is not asked for any, and makes all the blocks
    assert not any(isinstance(item, Moved) for item in came[: came.index(snapshots[0])])
    for snapshot in (snapshots[0], snapshots[len(snapshots) // 2], snapshots[-1]):
        rest = [b for b in came[came.index(snapshot) + 1 :] if isinstance(b, Moved)]
        assert same(run(ours, snapshot), rest)


def fullest(snapshots):
    """An early one of those that hold the most: keys and values, a solver's memory."""

    def kinds(snapshot):
        remembers = any(len(held) > 1 for held in snapshot.samples.values())
        return bool(snapshot.caches) + remembers

    full = [one for one in snapshots if kinds(one) == max(map(kinds, snapshots))]
    return full[len(full) // 3]


DEEP = "model.arch=test-causal"  # with layers for four stages
LAYOUTS = [
    ("parallel.num_stages=3",),
    ("parallel.num_stages=2", "parallel.cfg=split", "sampling.guidance_mode=sequential"),
    ("parallel.num_stages=4", "parallel.devices=2", "parallel.backend=ray"),
]


@pytest.mark.parametrize("policy", ["dualparal-grouped", "forcing", "rolling", "causal"])
def test_a_mark_that_goes_round_working_stages_is_a_snapshot_of_one_moment(policy):
    more, layouts = ["sampling.guidance_mode=sequential"], LAYOUTS[1:2]
    if policy == "causal":
        more, layouts = [*more, DEEP], LAYOUTS
    blocks = run(plan(policy, *more, steps=4))
    for layout in layouts:
        ours = plan(policy, *more, *layout, steps=4)
        came = run(ours, wanted=lambda has_finished: True, backend=ThreadBackend)
        assert same([item for item in came if not isinstance(item, Snapshot)], blocks)
        snapshots = [item for item in came if isinstance(item, Snapshot)]
        snapshot = fullest(snapshots)
        finished = set(range(snapshot.walk.next_block)) - dict(snapshot.walk.in_flight).keys()
        rest = [block for block in blocks if block.block not in finished]
        in_order = sorted(run(ours, snapshot, backend=ThreadBackend), key=lambda b: b.block)
        assert same(in_order, sorted(rest, key=lambda b: b.block))
        in_order = sorted(run(plan(policy, *more, steps=4), snapshot), key=lambda b: b.block)
        assert same(in_order, sorted(rest, key=lambda b: b.block))


@pytest.mark.parametrize("policy", ["dualparal", "causal", "rolling"])
def test_stages_that_devices_share_go_on_from_a_snapshot_of_all_their_pieces(policy):
    pairs = ("parallel.num_stages=2", "parallel.gpus_per_stage=2", "parallel.backend=ray")
    ours = plan(policy, "sampling.guidance_mode=sequential", "video.height=32", *pairs, frames=25)
    came = run(ours, wanted=lambda has_finished: True, backend=ThreadBackend)
    blocks = [item for item in came if not isinstance(item, Snapshot)]
    snapshots = [item for item in came if isinstance(item, Snapshot)]
    if policy != "dualparal":  # whose keys are gone between two ticks
        assert any(snapshot.caches for snapshot in snapshots)
    snapshot = fullest(snapshots)
    finished = set(range(snapshot.walk.next_block)) - dict(snapshot.walk.in_flight).keys()
    rest = sorted(run(ours, snapshot, backend=ThreadBackend), key=lambda b: b.block)
    assert rest
    assert same(rest, sorted((b for b in blocks if b.block not in finished), key=lambda b: b.block))


def test_a_stop_is_remembered_as_the_number_of_blocks():
    admission = Admission()
    assert [admission.stopped() for _ in range(3)] == [False] * 3
    assert admission.stop() == 3
    assert admission.stopped()
    again = Admission()
    again.resume(1, 3)
    assert [again.stopped() for _ in range(4)] == [False, False, True, True]
    assert again.stop() == 3
