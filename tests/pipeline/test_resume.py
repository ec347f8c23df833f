"""A chain that goes on from between any two ticks makes the bits it would have made."""

from contextlib import closing
from itertools import islice

import pytest
import torch
from any_schedule import MANY, first_tasks, schedules
from hypothesis import given, settings
from tiny_blocks import ARCHS, POLICIES, overrides

from longreel.jobs.render import plan_render
from longreel.models import arch as archs
from longreel.parallel.chain import Done
from longreel.parallel.snapshot import Snapshot
from longreel.parallel.tasks import WalkState
from longreel.pipeline.backend import LocalBackend
from longreel.pipeline.generator import Generator

VARIANTS = ["causal-recache", "forcing-causal", "dualparal-staggered-wide"]


@settings(max_examples=150, deadline=None)
@given(schedules())
def test_a_walk_goes_on_from_any_tick(schedule):
    tasks = first_tasks(schedule)
    walk = schedule.walk(WalkState())
    states = {}
    for task in islice(walk.tasks(), MANY):
        states.setdefault(task.tick, walk.tick_start)
    for tick, state in states.items():
        rest = [task for task in tasks if task.tick >= tick]
        assert list(islice(schedule.walk(state).tasks(), len(rest))) == rest


@pytest.fixture(autouse=True)
def _arch(monkeypatch):
    for name, arch in ARCHS.items():
        monkeypatch.setitem(archs.ARCHS, name, arch)


def plan(policy, *more, frames=49, **request):
    settings = overrides(policy, "model.device=cpu", *more)
    return plan_render("a cat", frames=frames, seed=3, overrides=settings, **request)


def chain_of(plan):
    generator = Generator(plan)
    backend = LocalBackend(plan)
    return backend.chain(generator.sampling(backend))


def run(plan, start=None, wanted=lambda has_finished: False):
    """What came, in order: blocks and snapshots."""
    with closing(chain_of(plan).run(plan.schedule, start, wanted=wanted)) as steps:
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
    ours = plan(policy, **request)
    came = run(ours, wanted=lambda has_finished: True)
    blocks = [item for item in came if not isinstance(item, Snapshot)]
    assert same(blocks, run(ours))
    snapshots = [item for item in came if isinstance(item, Snapshot)]
    assert len(snapshots) >= 4
    for snapshot in snapshots[:: max(1, len(snapshots) // 6)]:
        rest = [b for b in came[came.index(snapshot) + 1 :] if not isinstance(b, Snapshot)]
        assert same(run(ours, snapshot), rest)
