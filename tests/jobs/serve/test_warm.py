"""A worker of the server keeps what it has loaded, on a cluster too, and lets it go in time."""

import os
import signal
import time
from functools import partial
from queue import SimpleQueue
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_pipeline
from command import SMALL
from processes import all_gone
from ray_cluster import free_cpus, pids_of

from longreel.jobs.render import plan_render, stream_chunks
from longreel.jobs.serve.warm import WarmBackends
from longreel.jobs.serve.worker import _next
from longreel.jobs.serve.workers import Workers
from longreel.models import arch as archs
from longreel.models.vae_build import random_vae
from longreel.pipeline.generator import Generator

_SIZES = [setting for setting in SMALL if not setting.startswith("video.frames")]
OVER_RAY = ["parallel.backend=ray", "parallel.num_stages=2", "model.device=cpu"]


def make_plan(seed, *more, frames=17):
    settings = [*_SIZES, "blocks.policy=dualparal", "blocks.size=2", *more]
    return plan_render("a cat", seed=seed, frames=frames, overrides=settings)


def frames_over(warm, plan):
    generator = Generator(plan, open_backend=partial(warm.open, hear=[].append))
    return np.concatenate([chunk.frames for chunk in generator.chunks()])


def alone(seed):
    with stream_chunks(make_plan(seed)) as chunks:
        return np.concatenate([chunk.frames for chunk in chunks])


def test_weights_that_have_been_replaced_are_loaded_anew(tmp_path, monkeypatch):
    """As by another training, under the same name."""
    arch = tiny_pipeline.ARCHS["test-t2v"]
    monkeypatch.setitem(archs.ARCHS, "test-t2v", arch)
    tiny_pipeline.write_checkpoint(tmp_path, arch)
    plan = make_plan(0, "model.arch=test-t2v", f"model.checkpoint={tmp_path}")
    warm = WarmBackends()
    before = frames_over(warm, plan)
    shelf = warm._shelf
    assert np.array_equal(frames_over(warm, plan), before)
    assert warm._shelf is shelf
    random_vae(arch.vae, seed=2).save_pretrained(tmp_path / "vae")
    now = frames_over(warm, plan)
    assert not np.array_equal(now, before)
    assert np.array_equal(now, frames_over(WarmBackends(), plan))


@pytest.mark.ray
def test_renders_of_one_model_share_the_actors_of_a_cluster(two_nodes):
    warm = WarmBackends()
    plans = [make_plan(seed, *OVER_RAY) for seed in range(4)]
    assert np.array_equal(frames_over(warm, plans[0]), alone(0))
    pids = pids_of(warm._ray)
    assert np.array_equal(frames_over(warm, plans[1]), alone(1))
    assert pids_of(warm._ray) == pids
    assert max(warm.busy_s()) > 0
    # who is lost meanwhile is replaced, and nobody else
    for lost in (pids[1], pids[2]):
        os.kill(lost, signal.SIGKILL)
    assert all_gone(pids[1:], 10)
    assert np.array_equal(frames_over(warm, plans[2]), alone(2))
    now = pids_of(warm._ray)
    assert now[0] == pids[0]
    assert not {*now[1:]} & {*pids}
    # one that does not come to its end takes everything with it
    chunks = Generator(
        make_plan(3, *OVER_RAY, frames=401), open_backend=partial(warm.open, hear=[].append)
    ).chunks()
    next(chunks)
    assert pids_of(warm._ray) == now
    chunks.close()
    assert all_gone(now, 10)
    assert free_cpus() == 6
    warm.release()  # of what has gone already


@pytest.mark.ray
@pytest.mark.slow
def test_other_layouts_and_idle_workers_free_the_devices(two_nodes):
    warm = WarmBackends()
    frames_over(warm, make_plan(0, *OVER_RAY))
    before = pids_of(warm._ray)
    other = make_plan(1, "parallel.backend=ray", "model.device=cpu", "parallel.num_stages=1")
    assert np.array_equal(frames_over(warm, other), alone(1))
    assert all_gone(before, 10)
    now = pids_of(warm._ray)
    warm.release()
    assert all_gone(now, 10)
    assert free_cpus() == 6


@pytest.mark.ray
@pytest.mark.slow
def test_workers_that_share_the_vaes_tiles_stay_too(two_nodes):
    tiles = ("model.vae_tile=64", "video.height=64", "video.width=96")
    pairs = ("parallel.backend=ray", "model.device=cpu", "parallel.gpus_per_stage=2")
    warm = WarmBackends()
    seen = []
    for seed in (0, 1):
        frames_over(warm, make_plan(seed, *tiles, *pairs, frames=9))
        others = [other._actor._actor_id for other in warm._ray._tiles._others]
        seen.append((pids_of(warm._ray), others))
    assert seen[0] == seen[1]
    assert len(seen[0][1]) == 1
    fresh = WarmBackends()
    again = frames_over(warm, make_plan(1, *tiles, *pairs, frames=9))
    warm.release()
    assert np.array_equal(frames_over(fresh, make_plan(1, *tiles, *pairs, frames=9)), again)
    fresh.release()
    assert free_cpus() == 6


def test_a_worker_with_nothing_to_do_lets_go_of_its_devices():
    runs = SimpleQueue()
    start = time.monotonic()
    assert _next(runs, 0.05) == {"do": "release"}
    assert time.monotonic() - start >= 0.05
    runs.put({"do": "run"})
    assert _next(runs, 60.0) == {"do": "run"}
    runs.put(None)
    assert _next(runs, 60.0) is None


class IdleWorker:
    def __init__(self, model):
        self.model, self.alive, self.told = model, True, []

    def tell(self, do):
        self.told.append(do)


def test_the_worker_that_holds_the_model_is_chosen_and_others_make_room_for_one_that_does_not():
    workers = Workers({})
    one, two, three = idle = [IdleWorker(model) for model in ("a", "b", "c")]
    for worker in idle:
        workers.take_back(worker)
    assert workers._choose(SimpleNamespace(model="b")) is two
    assert [worker.told for worker in idle] == [[], [], []]
    assert workers._choose(SimpleNamespace(model="d")) is one
    assert [worker.told for worker in idle] == [[], [], ["release"]]
    three.alive = False
    assert workers._choose(SimpleNamespace(model="c")) is None
