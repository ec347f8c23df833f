"""Stages of several devices, in loops of their own, make the video of one device."""

import threading
import time
from functools import cache, partial

import pytest
import torch
from thread_chain import ThreadBackend
from tiny_blocks import overrides, shallow

from longreel.jobs.render import plan_render
from longreel.parallel.link import LinkClosed
from longreel.pipeline import backend as backends
from longreel.pipeline.generator import Generator

pytestmark = pytest.mark.usefixtures("tiny_archs")
GUIDED = ("sampling.guidance_mode=sequential", "video.height=32")
PAIRS = {"num_stages": 2, "gpus_per_stage": 2}
SQUARE = {"num_stages": 1, "gpus_per_stage": 4, "ring": 2}
BRANCHES = {"num_stages": 3, "gpus_per_stage": 2, "ring": 2, "cfg": "split"}
TOGETHER = {"num_stages": 3, "gpus_per_stage": 2, "devices": 2}


def make_plan(policy, *more, frames=29, **layout):
    settings = [f"parallel.{name}={value}" for name, value in layout.items()]
    settings += ["parallel.backend=ray"] * bool(layout)
    few = [] if policy.startswith(("causal", "rolling")) else ["sampling.steps=3"]
    settings = overrides(policy, shallow(policy), *few, *GUIDED, *more, *settings)
    return plan_render("a cat", frames=frames, seed=3, overrides=settings)


@cache
def expected(policy, *more):
    return Generator(make_plan(policy, *more)).latents()


def render(plan):
    """Its latents; every device has sent of what it had, and keeps nothing that is read no more."""
    backend = ThreadBackend(plan)
    latents = Generator(plan, open_backend=lambda *plan: backend).latents()
    for stage in backend.chains[0].stages:
        if not plan.schedule.commits:  # whose sink stays to the end
            assert stage.counters().cache_bytes == 0
        lines = [line for line in (stage.loop.share.ring, stage.loop.share.ulysses) if line.num > 1]
        assert lines
        assert all(line.group.sent_bytes > 0 for line in lines)
    return latents


@pytest.mark.parametrize(
    ("policy", "layout"),
    [
        ("whole", PAIRS),
        ("dualparal", PAIRS),
        ("causal", PAIRS),
        ("forcing-causal", PAIRS),
        ("dualparal", SQUARE),
        ("rolling", SQUARE),
        ("dualparal", BRANCHES),
        ("dualparal-grouped", TOGETHER),
        *(
            pytest.param(policy, layout, marks=pytest.mark.slow)
            for policy in ("dualparal-staggered", "diagonal", "buffer", "forcing", "causal")
            for layout in (PAIRS, SQUARE, BRANCHES, TOGETHER)
        ),
    ],
)
def test_shared_stages_make_the_latents_of_one_device(policy, layout):
    latents = render(make_plan(policy, "video.height=64", **layout))
    torch.testing.assert_close(latents, expected(policy, "video.height=64"), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "builder",
    ["pooled", "mass", "stale", pytest.param("spatiotemporal", marks=pytest.mark.slow)],
)
def test_lists_of_what_each_device_reads_make_the_latents_of_one_device(builder):
    settings = [f"attention.builder={builder}", "attention.tile=16", "attention.dense_steps=0"]
    if builder == "mass":  # heads go by what they have listed
        settings = ["attention.builder=pooled", "attention.mass=0.7", *settings[1:]]
    settings += ["video.height=64"]
    latents = render(make_plan("dualparal-grouped", *settings, **PAIRS))
    alone = expected("dualparal-grouped", *settings)
    torch.testing.assert_close(latents, alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", [PAIRS, pytest.param(SQUARE, marks=pytest.mark.slow)])
def test_the_same_request_makes_the_same_bits(layout):
    plan = make_plan("causal", "model.dtype=bfloat16", **layout, frames=13)
    assert torch.equal(render(plan), render(plan))


def test_a_device_that_breaks_ends_the_others_with_its_error():
    built = []

    def fail_on_one(plan, layers, device, *shelf):
        stage = backends.make_stage(plan, layers, device)
        built.append(stage)
        if len(built) == 4:  # the last stage's second
            stage.run = lambda task, x: 1 / 0
        return stage

    before = set(threading.enumerate())
    plan = make_plan("dualparal", **PAIRS)
    start = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        Generator(plan, open_backend=partial(ThreadBackend, make_stage=fail_on_one)).latents()
    assert time.monotonic() - start < 15  # and not after the timeout of 20
    assert set(threading.enumerate()) <= before


def test_a_device_that_is_cut_off_ends_the_others():
    backend = ThreadBackend(make_plan("dualparal", frames=241, **PAIRS))
    blocks = Generator(backend._plan, open_backend=lambda *plan: backend).blocks()
    next(blocks)
    backend.chains[0].stages[1].cut()
    with pytest.raises(LinkClosed):
        list(blocks)


@pytest.mark.slow
def test_all_devices_wait_for_a_slow_reader():
    """Four times longer than any of them would wait for another without a word."""
    plan = make_plan("dualparal", frames=61, **PAIRS)
    backend = ThreadBackend(plan, timeout_s=2.0)
    blocks = Generator(plan, open_backend=lambda *plan: backend).blocks()
    found = [next(blocks).block]
    time.sleep(8.0)
    found += [block.block for block in blocks]
    assert found == list(range(plan.schedule.num_blocks))
