"""Actors that share their stage's tokens make the video of one process, and end together."""

import os
import signal
import threading
import time
from functools import partial

import numpy as np
import pytest
import ray
import torch
from processes import all_gone
from ray_cluster import Warm, free_cpus, latents_of, make_plan, pids_of

from longreel.configs.parallel import ParallelConfig
from longreel.parallel.errors import ChainBroken
from longreel.parallel.layout import make_layout
from longreel.parallel.placement import find_fewer, place
from longreel.pipeline.backend import LocalBackend
from longreel.pipeline.errors import RenderError
from longreel.pipeline.generator import Generator
from longreel.pipeline.ray_backend import RayBackend
from longreel.pipeline.shares import tile_shares

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("tiny_archs", "two_nodes")]
GUIDED = "sampling.guidance_mode=sequential"
PAIRS = {"num_stages": 2, "gpus_per_stage": 2, "backend": "ray"}


def test_two_devices_a_stage_make_the_latents_of_one_device_and_twice_the_same():
    with Warm(**PAIRS) as warm:
        members = warm.crew.members
        assert len({member.pid for member in members}) == 4
        assert members[0].node == members[1].node != members[2].node == members[3].node
        for policy in ("dualparal", "causal"):
            plan = make_plan(policy, GUIDED, **PAIRS)
            first, again = (Generator(plan, open_backend=warm.backend).latents() for _ in range(2))
            torch.testing.assert_close(first, latents_of(policy, GUIDED), rtol=0, atol=1e-4)
            assert torch.equal(again, first), policy
    assert free_cpus() == 6


def test_tiles_decoded_on_two_devices_are_the_frames_of_one():
    tiles = ("model.vae_tile=64", "video.height=64", "video.width=96", "sampling.steps=2")
    shared = make_plan("whole", *tiles, frames=9, gpus_per_stage=2, backend="ray")
    assert list(map(len, tile_shares(shared))) == [2, 2]
    alone = make_plan("whole", *tiles, frames=9)
    latents = Generator(alone).latents()
    backend = RayBackend(shared, threading.Event())
    try:
        pids = [*pids_of(backend), *pids_of_others(backend)]
        assert len(set(pids)) == 4
        ours = [*backend.decode(latents[:, :, :2]), *backend.decode(latents[:, :, 2:])]
    finally:
        backend.close()
    theirs = [*LocalBackend(alone).decode(latents)]
    assert np.array_equal(np.concatenate(ours), np.concatenate(theirs))
    assert all_gone(pids, within_s=1.0)
    assert free_cpus() == 6


def pids_of_others(backend):
    asked = [
        other._actor.__ray_call__.remote(lambda host: os.getpid())
        for other in backend._tiles._others
    ]
    return ray.get(asked, timeout=30)


@pytest.mark.parametrize(
    ("sent", "said"),
    [(signal.SIGKILL, "ended"), pytest.param(signal.SIGSTOP, "answer", marks=pytest.mark.slow)],
)
def test_a_device_of_a_stage_that_is_lost_ends_the_render_with_its_name(sent, said):
    short = ("sampling.steps=2", "sampling.guidance_mode=none", "parallel.transfer_timeout_s=6")
    short += ("parallel.repairs=0",)
    plan = make_plan("dualparal", *short, frames=241, **PAIRS)
    generator = Generator(plan)
    blocks = generator.blocks()
    next(blocks)
    pids = pids_of(generator._backend)
    os.kill(pids[3], sent)
    start = time.monotonic()
    words = rf"^device 2 of 2 of stage 2 of 2 \(layers 3 to 4\) was lost at block .* {said}"
    with pytest.raises(RenderError, match=words):
        list(blocks)
    assert time.monotonic() - start < 30
    assert all_gone(pids, within_s=1.0)
    assert free_cpus() == 6


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"num_stages": 4, "gpus_per_stage": 2},
            r"num_stages=4 of parallel\.gpus_per_stage=2 asks for 8 x \{CPU: 1\}, which cannot be "
            r"placed: .* 6 CPUs .*; set parallel\.devices=4 \(.*, or parallel\.gpus_per_stage=1",
        ),
        (
            {"num_stages": 1, "gpus_per_stage": 4},
            r"6 of them free; 4 of them exchange heads and must be on one node, and the largest "
            r"has 3; set parallel\.ring so that fewer do",
        ),
    ],
)
def test_devices_that_cannot_stand_together_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        place(make_layout(ParallelConfig(**settings)), "cpu", timeout_s=1.0, may_grow=False)
    assert free_cpus() == 6


def test_what_is_left_is_counted_in_devices_that_can_exchange_heads():
    """On two nodes of three: three pairs were asked for, once and again, which are on neither."""
    asked = partial(find_fewer, kind="cpu", timeout_s=2.0, check=lambda: None)
    fewer = asked(ParallelConfig(num_stages=3, gpus_per_stage=2))
    assert fewer.num_stages == 2
    place(make_layout(fewer), "cpu", timeout_s=10.0, may_grow=False).remove()
    round_a_ring = ParallelConfig(num_stages=3, gpus_per_stage=2, ring=2)
    assert asked(round_a_ring) == round_a_ring
    with pytest.raises(ChainBroken, match=r"of the 6 CPUs that are left no node has 4"):
        asked(ParallelConfig(gpus_per_stage=4))
