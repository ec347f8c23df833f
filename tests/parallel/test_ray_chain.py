"""Over Ray actors a render has the bits it has in one process, and leaves nothing behind."""

import os
import signal
import threading
import time
from contextlib import closing

import numpy as np
import pytest
import ray
import torch
from processes import all_gone, kept_shared_memory, shared_memory
from ray_cluster import Warm, free_cpus, latents_of, make_plan, pids_of
from tiny_blocks import POLICIES

from longreel.configs.parallel import ParallelConfig
from longreel.jobs import cluster as connecting
from longreel.jobs.render import stream_chunks
from longreel.parallel import ray_chain
from longreel.parallel.crew import Crew
from longreel.parallel.layout import make_layout
from longreel.parallel.placement import place
from longreel.pipeline.cost import Seconds
from longreel.pipeline.errors import RenderError
from longreel.pipeline.generator import Generator
from longreel.pipeline.measured import keep, make_case

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("tiny_archs", "two_nodes")]


def layout(num_stages, **more):
    return make_layout(ParallelConfig(num_stages=num_stages, **more))


@pytest.mark.parametrize(
    ("num_stages", "policies"),
    [
        (1, ["dualparal", "causal"]),
        (5, ["dualparal-grouped", "rolling"]),
        pytest.param(2, POLICIES, marks=pytest.mark.slow),
    ],
)
def test_any_number_of_actors_gives_the_bits_of_one_process(num_stages, policies):
    with Warm(num_stages) as warm:
        nodes = [member.node for member in warm.crew.members]
        assert len(set(nodes)) == 1 + (num_stages > 3)
        assert nodes == sorted(nodes)
        for policy in policies:
            plan = make_plan(policy, num_stages=num_stages)
            ours = Generator(plan, open_backend=warm.backend).latents()
            assert torch.equal(ours, latents_of(policy)), policy
    assert free_cpus() == 6


def test_a_stream_has_the_frames_of_one_process_and_frees_all_when_closed(tmp_path):
    more = ["parallel.backend=ray", f"parallel.calibration={tmp_path}"]
    plan = make_plan("dualparal", *more, frames=161, num_stages=4)
    case = make_case(plan.config, plan.schedule, torch.device("cpu"))
    keep(str(tmp_path), case, Seconds(token=1.0, embed_token=1.5))  # as measured where stages are
    before = shared_memory()
    stream = stream_chunks(plan)
    first = [next(stream) for _ in range(5)]
    pids = pids_of(stream._generator._backend)
    assert len(pids) == 5
    assert [len(layers) for layers in stream._generator._chain._devices.slices] == [1, 2, 1, 1]
    start = time.monotonic()
    stream.close()
    assert all_gone(pids, within_s=1.0 - (time.monotonic() - start))
    assert free_cpus() == 6
    assert kept_shared_memory(before) == set()
    with closing(stream_chunks(make_plan("dualparal", frames=161))) as local:
        for ours, theirs in zip(first, local, strict=False):
            assert np.array_equal(ours.frames, theirs.frames)
            assert (ours.block, ours.start) == (theirs.block, theirs.start)


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (signal.SIGKILL, "ended"),
        pytest.param(signal.SIGSTOP, "does not answer", marks=pytest.mark.slow),
    ],
)
def test_a_stage_that_is_lost_ends_the_render_with_its_name(sent, said):
    plan = make_plan(
        "dualparal",
        "parallel.backend=ray",
        "parallel.transfer_timeout_s=1.5",
        "parallel.repairs=0",
        frames=241,
        num_stages=3,
    )
    generator = Generator(plan)
    blocks = generator.blocks()
    next(blocks)
    pids = pids_of(generator._backend)
    os.kill(pids[1], sent)
    start = time.monotonic()
    words = rf"stage 2 of 3 \(layers 2 to 3\) was lost at block \d+, step \d+: .* {said}"
    with pytest.raises(RenderError, match=words):
        list(blocks)
    assert time.monotonic() - start < 10
    assert all_gone(pids, within_s=1.0)
    assert free_cpus() == 6


@pytest.mark.parametrize(
    ("num_stages", "device", "may_grow", "words"),
    [
        (
            4,
            "cuda",
            False,
            r"asks for 4 x \{GPU: 1\}, .* has 2 GPUs on 2 nodes, 2 of them free; set",
        ),
        (9, "cpu", True, r"within parallel.place_timeout_s=1: .* 6 CPUs .* parallel.num_stages=6"),
        (2, "cuda:1", False, r"model.device=cuda:1 names one GPU.*; set model.device=cuda"),
    ],
)
def test_devices_that_are_not_there_are_named(num_stages, device, may_grow, words):
    with pytest.raises(ValueError, match=words):
        place(layout(num_stages), device, timeout_s=1.0, may_grow=may_grow)
    assert free_cpus() == 6


def test_busy_devices_are_waited_for_and_then_named():
    others = place(layout(5), "cpu", timeout_s=10.0, may_grow=False)
    with pytest.raises(ValueError, match=r"1 of them free; wait for other renders"):
        place(layout(2), "cpu", timeout_s=0.5, may_grow=False)
    others.remove()


def test_stages_have_a_gpu_each_where_the_cluster_has_some():
    placement = place(layout(2), "auto", timeout_s=10.0, may_grow=False)
    assert placement.device == "cuda"
    crew = Crew(placement)
    assert [member.gpu for member in crew.members] == ["0", "1"]
    crew.close()
    placement.remove()


def test_what_is_told_while_weights_load_is_heard_by_the_first_stage_that_comes():
    parts = ray_chain.ChainParts(stage=None, windows=None, stepper=None)
    chain = ray_chain.RayChain(None, parts, timeout_s=1.0)
    generator = Generator(make_plan("dualparal"))
    with generator._begun():
        generator._chain = chain  # as when it has been made
        generator._ready.set()
        for state in ("PLACE", "LOAD", "JOIN", "RUN"):
            chain._enter(state)
            assert generator.is_loaded == (state == "RUN"), state
            if state == "LOAD":
                generator._maker = threading.get_ident()  # who would load them meanwhile
                with pytest.raises(ValueError, match="would wait for itself"):
                    generator.stop()
    chain.run(None, limit=None, seen=3)
    assert (chain.stop(), chain._telling.limit) == (3, 3)


def test_a_cluster_that_cannot_be_reached_is_named_within_seconds():
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"address=127\.0\.0\.1:9 cannot be reached"):
        connecting._reach("127.0.0.1:9")
    with pytest.raises(ValueError, match="is no host:port of a Ray head"):
        connecting._reach("ray://somewhere:10001")
    assert time.monotonic() - start < 5
    host, port = ray.get_runtime_context().gcs_address.split(":")
    assert connecting._speaks_grpc(host, int(port))  # one that can be is not refused
