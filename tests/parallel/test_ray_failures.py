"""Whatever is lost of a render over Ray, its frames are those of an undisturbed one."""

import os
import signal
from functools import cache

import numpy as np
import pytest
from ray_cluster import all_gone, free_cpus, pids_of, two_nodes
from tiny_blocks import ARCHS, overrides

from longreel.jobs.render import plan_render, stream_chunks
from longreel.models import arch as archs

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def _cluster():
    with two_nodes():
        yield


@pytest.fixture(autouse=True)
def _arch(monkeypatch):
    for name, arch in ARCHS.items():
        monkeypatch.setitem(archs.ARCHS, name, arch)


def make_plan(policy, *more, frames=81, num_stages=1):
    settings = overrides(
        policy,
        "model.device=cpu",
        "checkpoint.every_s=0.1",
        "parallel.transfer_timeout_s=4",
        f"parallel.num_stages={num_stages}",
        *more,
    )
    return plan_render("a cat", frames=frames, seed=3, overrides=settings)


@cache
def expected(policy, frames=81):
    with stream_chunks(make_plan(policy, frames=frames)) as chunks:
        return np.concatenate([chunk.frames for chunk in chunks])


def frames_of(plan, hurt, what="denoise", after=20):
    """All frames; `hurt` is called when so many tasks are done, or frames decoded."""
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


@pytest.mark.parametrize("policy", ["dualparal-grouped", "causal"])
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_a_stage_that_is_lost_is_replaced(policy, sent, caplog):
    hurt = []

    def kill(backend):
        hurt.extend(pids_of(backend))
        os.kill(hurt[1], sent)

    plan = make_plan(policy, "parallel.backend=ray", num_stages=3)
    assert np.array_equal(frames_of(plan, kill), expected(policy))
    assert "stage 2 of 3 (layers 2 to 3) was lost at block" in caplog.text
    assert all_gone(hurt, within_s=5.0)
    assert free_cpus() == 6


def test_a_decoder_that_is_lost_is_replaced_where_it_stood(caplog):
    def kill(backend):
        os.kill(pids_of(backend)[-1], signal.SIGKILL)

    plan = make_plan("dualparal", "parallel.backend=ray", num_stages=2)
    assert np.array_equal(frames_of(plan, kill, "decode", 30), expected("dualparal"))
    assert "the worker that reads prompts and decodes was lost" in caplog.text
