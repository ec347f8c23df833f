"""Whatever is lost of a render over Ray, its frames are those of an undisturbed one."""

import os
import signal
from functools import cache

import numpy as np
import pytest
from ray_cluster import all_gone, free_cpus, make_plan, pids_of

from longreel.jobs.render import stream_chunks

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("tiny_archs", "two_nodes")]


BORNE = ("checkpoint.every_s=0.1", "parallel.transfer_timeout_s=4", "parallel.backend=ray")


@cache
def expected(policy):
    with stream_chunks(make_plan(policy, frames=81)) as chunks:
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

    plan = make_plan(policy, *BORNE, frames=81, num_stages=3)
    assert np.array_equal(frames_of(plan, kill), expected(policy))
    assert "stage 2 of 3 (layers 2 to 3) was lost at block" in caplog.text
    assert all_gone(hurt, within_s=5.0)
    assert free_cpus() == 6


def test_a_decoder_that_is_lost_is_replaced_where_it_stood(caplog):
    def kill(backend):
        os.kill(pids_of(backend)[-1], signal.SIGKILL)

    plan = make_plan("dualparal", *BORNE, frames=81, num_stages=2)
    assert np.array_equal(frames_of(plan, kill, "decode", 30), expected("dualparal"))
    assert "the worker that reads prompts and decodes was lost" in caplog.text
