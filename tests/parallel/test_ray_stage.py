"""Stages in loops of their own, with messages between them, are the chain of one process."""

import threading
import time
from functools import partial

import pytest
import torch
from poison import make_poisoned_stage
from thread_chain import ThreadBackend
from tiny_blocks import ARCHS, POLICIES, overrides

from longreel.jobs.render import plan_render
from longreel.models import arch as archs
from longreel.pipeline import backend as backends
from longreel.pipeline.errors import RenderError
from longreel.pipeline.generator import Generator


@pytest.fixture(autouse=True)
def _arch(monkeypatch):
    for name, arch in ARCHS.items():
        monkeypatch.setitem(archs.ARCHS, name, arch)


def make_plan(policy, *more, frames=33, num_stages=1):
    settings = overrides(policy, *more, f"parallel.num_stages={num_stages}")
    return plan_render("a cat", frames=frames, seed=3, overrides=settings)


@pytest.mark.parametrize(("dtype", "counts"), [("float32", (1, 2, 5)), ("bfloat16", (3,))])
@pytest.mark.parametrize("policy", POLICIES)
def test_stages_in_loops_of_their_own_give_the_bits_of_one(policy, dtype, counts):
    expected = Generator(make_plan(policy, f"model.dtype={dtype}")).latents()
    for num_stages in counts:
        plan = make_plan(policy, f"model.dtype={dtype}", num_stages=num_stages)
        cut = Generator(plan, open_backend=ThreadBackend).latents()
        assert torch.equal(cut, expected), num_stages


def test_a_reader_who_stops_reading_stops_admission():
    plan = make_plan("dualparal", frames=4 * 60 + 1, num_stages=2)
    backend = ThreadBackend(plan)
    blocks = Generator(plan, open_backend=lambda plan: backend).blocks()
    first = next(blocks)
    counters = backend.chains[0].stages[0].counters
    seen = []
    for _ in range(20):  # until nothing moves any more
        time.sleep(0.1)
        seen.append(counters().admitted)
    assert seen[-1] == seen[-5]
    assert seen[-1].finished - seen[-1].taken == 2  # a burst of one, and one more
    assert seen[-1].begun <= seen[-1].finished + plan.schedule.max_inflight
    rest = list(blocks)
    assert [block.block for block in (first, *rest)] == list(range(plan.schedule.num_blocks))


def test_a_chain_that_waits_for_its_reader_longer_than_the_timeout_goes_on():
    plan = make_plan("dualparal", frames=65, num_stages=3)

    def backend(plan):
        return ThreadBackend(plan, timeout_s=0.6)

    blocks = Generator(plan, open_backend=backend).blocks()
    latents = [next(blocks).latents_BCTHW]
    time.sleep(2.0)
    latents += [block.latents_BCTHW for block in blocks]
    assert torch.equal(torch.cat(latents, dim=2), Generator(plan).latents())


def test_an_error_in_a_stage_ends_all_stages_with_the_error_of_one_process(monkeypatch):
    monkeypatch.setattr(backends, "make_stage", make_poisoned_stage)
    with pytest.raises(RenderError, match="hold NaN or infinity") as expected:
        Generator(make_plan("buffer")).latents()
    before = set(threading.enumerate())
    backend = partial(ThreadBackend, make_stage=make_poisoned_stage)
    with pytest.raises(RenderError) as ours:
        Generator(make_plan("buffer", num_stages=3), open_backend=backend).latents()
    assert str(ours.value) == str(expected.value)
    assert set(threading.enumerate()) <= before


def test_a_stopped_chain_finishes_what_is_in_flight():
    plan = make_plan("dualparal", frames=4 * 60 + 1, num_stages=2)
    generator = Generator(plan, open_backend=ThreadBackend)
    blocks = generator.blocks()
    latents = [next(blocks).latents_BCTHW]
    generator.stop()
    latents += [block.latents_BCTHW for block in blocks]
    begun = plan.schedule.max_inflight + 3
    assert 1 < len(latents) <= begun
