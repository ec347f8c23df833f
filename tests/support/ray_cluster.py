"""What tests over Ray share: the cluster, plans, and actors kept from render to render."""

import os
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import poison
import pytest
import ray
from forked_workers import forking, listening
from processes import command, descendants
from ray.cluster_utils import Cluster
from tiny_blocks import overrides

from longreel.configs.parallel import ParallelConfig
from longreel.jobs.render import plan_render, stream_chunks
from longreel.parallel.crew import Crew
from longreel.parallel.layout import make_layout
from longreel.parallel.placement import place
from longreel.pipeline.backend import LocalBackend
from longreel.pipeline.codec import Codec
from longreel.pipeline.generator import Generator
from longreel.pipeline.ray_backend import RayBackend

_QUIET = {
    "RAY_worker_niceness": "0",  # else they starve beside anything that works
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    "REPORTER_UPDATE_INTERVAL_MS": "600000",  # nobody looks at what a node says of itself
    "OMP_NUM_THREADS": "1",
}


@contextmanager
def quiet():
    """What a cluster of tests finds in its environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _QUIET.items():
            patch.setenv(name, value)
        yield


@contextmanager
def cluster_of(*nodes, **system):
    """A cluster with these nodes, the head first; `system`: Ray's own settings."""
    with quiet(), _nodes(*nodes, **system) as cluster, _connected(cluster):
        yield cluster


@contextmanager
def two_nodes():
    """Two nodes of three CPUs; the second has two GPUs, as far as Ray is told. Workers are forked,
    from a process that has imported what they need."""
    with (
        quiet(),
        tempfile.TemporaryDirectory() as folder,
        listening(Path(folder)) as (server, forked),
        _nodes({"num_cpus": 3, **forked}, {"num_cpus": 3, "num_gpus": 2, **forked}) as cluster,
        forking(server),
        _connected(cluster),
    ):
        yield cluster


@contextmanager
def _nodes(*nodes, **system):
    every = {"object_store_memory": 100 * 2**20, "include_log_monitor": False}
    head = {"include_dashboard": False, "_system_config": system}
    cluster = Cluster(initialize_head=True, head_node_args={**nodes[0], **every, **head})
    try:
        for node in nodes[1:]:
            cluster.add_node(**node, **every)
        yield cluster
    finally:
        cluster.shutdown()


@contextmanager
def _connected(cluster):
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False, namespace="tests")
    ray.cloudpickle.register_pickle_by_value(poison)  # actors do not see this folder
    yield
    ray.shutdown()


def make_plan(policy, *more, frames=33, **parallel):
    """In this process, unless `backend` or `more` says otherwise."""
    layout = [f"parallel.{name}={value}" for name, value in parallel.items()]
    settings = overrides(policy, "model.device=cpu", *more, *layout)
    return plan_render("a cat", frames=frames, seed=3, overrides=settings)


@cache
def latents_of(policy, *more):
    """Made by one stage in this process."""
    return Generator(make_plan(policy, *more)).latents()


def frames_of(plan, hurt, what="denoise", after=20):
    """All frames; `hurt` is called with the backend when so many tasks are done, or frames
    decoded."""
    hurts = []

    def report(now, done, total, note=""):
        if now == what and done >= after and not hurts:
            hurts.append(done)
            hurt(stream._generator._backend)

    frames = []
    with stream_chunks(plan, report) as stream:
        for chunk in stream:
            assert chunk.start == sum(map(len, frames))
            frames.append(chunk.frames)
    assert hurts
    return np.concatenate(frames)


def free_cpus(want=6.0):
    """Ray's count of them lags a little behind."""
    deadline = time.monotonic() + 5.0
    while (free := ray.available_resources().get("CPU", 0.0)) != want:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return free


def over_ray(cluster, num_stages=2):
    """Changes to a plan, for a driver of its own."""
    return {
        "parallel.backend": "ray",
        "parallel.address": cluster.address,
        "parallel.num_stages": num_stages,
        "parallel.transfer_timeout_s": 4.0,
    }


def actors():
    """Processes of actors, as Ray names them, on nodes that this process has started."""
    names = "ray::StageActor", "ray::Host"
    return [pid for pid in descendants(os.getpid()) if command(pid).startswith(names)]


def pids_of(backend):
    ask = backend._worker._actor.__ray_call__.remote(lambda host: os.getpid())
    return [*(member.pid for member in backend._crew.members), ray.get(ask, timeout=30)]


class WarmCrew(Crew):
    """A render does not end it."""

    def close(self):
        pass

    def end(self):
        super().close()


class WarmBackend(RayBackend):
    """Prompts are read here; stages are actors that outlive the render."""

    def __init__(self, plan, placement, crew, make_stage=None):
        self._plan, self._placement, self._crew = plan, placement, crew
        local = LocalBackend(plan)
        self.texts, self.condition = local.texts, local.condition
        self.decode, self.restore = local.decode, local.restore
        self.expect_decoding = local.expect_decoding
        self._hear, self._slices = [].append, None
        self.measured = Codec(plan).measured
        self._make_stage = make_stage

    def chain(self, sampling):
        chain = super().chain(sampling)
        if self._make_stage is not None:
            chain._parts = replace(chain._parts, stage=self._make_stage)
        self.last_chain = chain
        return chain

    def _check(self):
        pass

    def close(self):
        pass


class Warm:
    """A placement and its crew."""

    def __init__(self, num_stages=1, **more):
        layout = make_layout(ParallelConfig(num_stages=num_stages, **more))
        self.placement = place(layout, "cpu", timeout_s=20.0, may_grow=True)
        self.crew = WarmCrew(self.placement)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.crew.end()
        self.placement.remove()

    def backend(self, plan, given_up=None, make_stage=None):
        return WarmBackend(plan, self.placement, self.crew, make_stage)
