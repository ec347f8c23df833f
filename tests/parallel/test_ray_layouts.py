"""Branches on actors of their own, and stages that share one, have the bits of one process."""

import os
import signal
import time
from functools import partial

import numpy as np
import pytest
import ray
import torch
from processes import all_gone
from ray_cluster import Warm, frames_of, free_cpus, latents_of, make_plan, pids_of
from tiny_blocks import POLICIES

from longreel.configs.parallel import ParallelConfig
from longreel.jobs.render import stream_chunks
from longreel.parallel import placement as placements
from longreel.parallel.crew import Crew, NoReplacement
from longreel.parallel.layout import make_layout
from longreel.parallel.placement import place
from longreel.pipeline.generator import Generator

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("tiny_archs", "two_nodes")]
GUIDED = "sampling.guidance_mode=sequential"  # the few-step policies have none of their own
SPLIT = {"num_stages": 2, "cfg": "split", "backend": "ray"}
SHARED = {"num_stages": 4, "devices": 2, "backend": "ray"}
BOTH = {"num_stages": 4, "cfg": "split", "devices": 4, "backend": "ray"}


@pytest.mark.parametrize(
    ("layout", "num_actors", "policies"),
    [
        (SPLIT, 4, POLICIES),
        (SHARED, 2, POLICIES),
        (BOTH, 4, ["dualparal", "rolling"]),
    ],
    ids=["split", "shared", "both"],
)
def test_every_layout_gives_the_bits_of_one_process(layout, num_actors, policies):
    wanted = [(policy, GUIDED) for policy in policies]
    wanted += [("dualparal", GUIDED, "model.dtype=bfloat16")]
    with Warm(**layout) as warm:
        pids = [member.pid for member in warm.crew.members]
        assert len(set(pids)) == num_actors
        nodes = [member.node for member in warm.crew.members]
        assert len(set(nodes)) == 1 + (num_actors > 3)
        for policy, *more in wanted:
            plan = make_plan(policy, *more, **layout)
            ours = Generator(plan, open_backend=warm.backend).latents()
            assert torch.equal(ours, latents_of(policy, *more)), (policy, more)
    assert all_gone(pids, within_s=2.0)
    assert free_cpus() == 6


@pytest.mark.parametrize(
    "layout", [SPLIT, pytest.param(SHARED, marks=pytest.mark.slow)], ids=["split", "shared"]
)
def test_a_stream_that_is_closed_leaves_no_process(layout):
    stream = stream_chunks(make_plan("dualparal", frames=161, **layout))
    for _ in range(3):
        next(stream)
    pids = pids_of(stream._generator._backend)
    assert len(pids) == (5 if layout is SPLIT else 3)
    before = time.monotonic()
    stream.close()
    assert all_gone(pids, within_s=1.0 - (time.monotonic() - before))
    assert free_cpus() == 6


@pytest.mark.parametrize(
    ("settings", "device", "words"),
    [
        (
            {"num_stages": 2, "cfg": "split"},
            "cuda",
            r"num_stages=2 with parallel\.cfg=split asks for 4 x \{GPU: 1\}, which cannot be "
            r"placed: .* has 2 GPUs .*set parallel\.devices=2 \(stages then share them\), or "
            r"parallel\.cfg=batch; or add nodes",
        ),
        (
            {"num_stages": 3},
            "cuda",
            r"num_stages=3 asks for 3 x .*; set parallel\.num_stages=2, or parallel\.devices=2 \(",
        ),
        (
            {"num_stages": 8, "devices": 3},
            "cuda",
            r"devices=3 asks for 3 x .* 2 GPUs .*; set parallel\.devices=2 \(stages then share",
        ),
        ({"num_stages": 4, "cfg": "split"}, "cpu", r"8 x \{CPU: 1\}.*set parallel\.devices=6 \("),
        ({"num_stages": 2, "devices": 1}, "cuda:1", r"the stages are given 1 by the cluster"),
    ],
)
def test_devices_that_are_not_there_are_named(settings, device, words):
    layout = make_layout(ParallelConfig(**settings))
    with pytest.raises(ValueError, match=words):
        place(layout, device, timeout_s=1.0, may_grow=False)
    assert free_cpus() == 6


def test_stages_that_share_a_gpu_share_its_one_actor():
    layout = make_layout(ParallelConfig(num_stages=4, devices=2))
    placement = place(layout, "auto", timeout_s=10.0, may_grow=False)
    assert placement.device == "cuda"
    crew = Crew(placement)
    assert [member.gpu for member in crew.members] == ["0", "1"]
    assert ray.available_resources().get("GPU", 0.0) == 0.0
    crew.close()
    placement.remove()


@pytest.mark.parametrize(
    ("layout", "left"),
    [
        (SPLIT, 1),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((SPLIT, 3), (SHARED, 1), (BOTH, 3), (BOTH, 1))
        ),
    ],
)
def test_layers_are_split_anew_over_as_many_devices_as_are_left(layout, left, monkeypatch, caplog):
    """Branches that had chains of their own share one, if they must."""

    def arrive_once(crew):
        if crew._members:
            raise NoReplacement("a device is gone for good")
        return arrive(crew)

    def lose(backend):
        os.kill(pids_of(backend)[0], signal.SIGKILL)

    arrive = Crew._arrive
    monkeypatch.setattr(Crew, "_arrive", arrive_once)
    found = partial(placements.fewer, free=left)
    monkeypatch.setattr(placements, "find_fewer", lambda parallel, kind, **rest: found(parallel))
    truth = stream_chunks(make_plan("dualparal", GUIDED))
    plan = make_plan("dualparal", GUIDED, "checkpoint.every_s=0.1", **layout)
    ours = frames_of(plan, lose, after=8)
    assert np.array_equal(ours, np.concatenate([chunk.frames for chunk in truth]))
    assert caplog.text.count("split anew over the devices that are left") == 1
    assert free_cpus() == 6
