"""Stages of several devices, in loops of their own, make the video of one device."""

from functools import cache

import pytest
import torch
from thread_chain import ThreadBackend
from tiny_blocks import ARCHS, POLICIES, overrides

from longreel.jobs.render import plan_render
from longreel.models import arch as archs
from longreel.pipeline.generator import Generator

GUIDED = "sampling.guidance_mode=sequential"


@pytest.fixture(autouse=True)
def _arch(monkeypatch):
    for name, arch in ARCHS.items():
        monkeypatch.setitem(archs.ARCHS, name, arch)


def make_plan(policy, *more, **layout):
    settings = [f"parallel.{name}={value}" for name, value in layout.items()]
    if layout:
        settings.append("parallel.backend=ray")
    settings = overrides(policy, *more, *settings)
    return plan_render("a cat", frames=33, seed=3, overrides=settings)


@cache
def expected(policy, *more):
    return Generator(make_plan(policy, *more)).latents()


def render(plan):
    return Generator(plan, open_backend=ThreadBackend).latents()


@pytest.mark.parametrize("policy", [*POLICIES, "forcing-causal"])
@pytest.mark.parametrize(
    "layout", [{"gpus_per_stage": 2, "num_stages": 2}, {"gpus_per_stage": 4, "ring": 2}]
)
def test_shared_stages_make_the_latents_of_one_device_and_twice_the_same(policy, layout):
    plan = make_plan(policy, GUIDED, **layout)
    first = render(plan)
    torch.testing.assert_close(first, expected(policy, GUIDED), rtol=0, atol=1e-4)
    assert torch.equal(render(plan), first)
