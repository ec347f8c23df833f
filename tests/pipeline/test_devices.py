"""Renders on a GPU that is this CPU: no tensor is on another device, and layers never wait."""

from collections import Counter
from contextlib import closing

import pytest
import torch
from pretend_gpu import OnGpu, bare, pretended
from tiny_blocks import overrides, shallow

from longreel.jobs.render import plan_render
from longreel.parallel.chain import Done
from longreel.parallel.snapshot import Snapshot, pack_snapshot
from longreel.pipeline.backend import LocalBackend
from longreel.pipeline.codec import Codec
from longreel.pipeline.generator import Generator

pytestmark = pytest.mark.usefixtures("tiny_archs")


@pytest.fixture
def gpus(monkeypatch):
    with pretended(monkeypatch) as gpus:
        yield gpus


def _plan(device, policy, *more, frames=9):
    settings = overrides(policy, shallow(policy), f"model.device={device}", *more)
    return plan_render("a cat", frames=frames, seed=3, overrides=settings)


def _run(plan, start=None, snapshots=False):
    backend = LocalBackend(plan)
    chain = backend.chain(Generator(plan).sampling(backend))
    with closing(chain.run(plan.schedule, start, wanted=lambda _: snapshots)) as steps:
        items = [x for s in steps for x in (s.finished if isinstance(s, Done) else [s])]
    taken = [x for x in items if isinstance(x, Snapshot)]
    return {x.block: x.latents_BCTHW.cpu() for x in items if not isinstance(x, Snapshot)}, taken


LISTS = ("video.height=64", "video.width=64", "attention.tile=16", "attention.dense_steps=0")
FEW = ("sampling.steps=2",)
UNGUIDED = ("sampling.guidance_mode=none",)
CASES = [
    ("causal", ()),
    ("whole", (*FEW, *LISTS, "attention.builder=pooled", "attention.dense_steps=0.5")),
    ("whole", (*FEW, *LISTS, *UNGUIDED, "attention.builder=spatiotemporal")),
    ("dualparal-grouped", (*FEW, *LISTS, *UNGUIDED, "attention.builder=local")),
]


@pytest.mark.parametrize(("policy", "more"), CASES, ids=lambda x: x if isinstance(x, str) else "")
def test_a_render_on_a_gpu_keeps_its_tensors_there(gpus, policy, more):
    ours, _ = _run(_plan("cuda:0", policy, *more))
    read = Counter(place for what, place in gpus.waits if what != "from the host")
    with bare():
        expected, _ = _run(_plan("cpu", policy, *more))
    assert ours.keys() == expected.keys()
    for block, latents in expected.items():
        # sums in another order
        torch.testing.assert_close(ours[block], latents, atol=1e-4, rtol=1e-4)
    # a step is checked for NaN; layers wait for nothing
    assert not [place for place in read if place.startswith("models/wan")], read
    assert not [place for place in read if place.startswith("kernels")], read


@pytest.mark.parametrize(("policy", "more"), [("dualparal", (*FEW, *UNGUIDED)), ("causal", ())])
def test_a_chain_goes_on_from_tensors_of_the_host(gpus, policy, more):
    """As a checkpoint's file and a repair over Ray bring them."""
    plan = _plan("cuda:0", policy, *more, frames=17)
    whole, taken = _run(plan, snapshots=True)
    middle = taken[len(taken) // 2]
    held = pack_snapshot(middle, first=True, last=True, layers=range(9), passes=range(2)).unpack()
    rest, _ = _run(plan, held)
    assert rest
    assert all(torch.equal(latents, whole[block]) for block, latents in rest.items())


def test_a_decoder_waits_for_its_frames_alone(gpus):
    codec = Codec(_plan("cuda:0", "whole"))
    latents = torch.randn(1, 16, 3, 2, 3)
    first = next(codec.decode(latents[:, :, :1]))
    gpus.waits.clear()
    rest = list(codec.decode(latents[:, :, 1:]))
    assert [len(frames) for frames in (first, *rest)] == [1, 4, 4]
    # a latent goes there; its frames come back, and behind them whether all are finite
    there, here, finite = "from the host", "to the host", "aten._local_scalar_dense.default"
    assert [what for what, _ in gpus.waits] == 2 * [there, here, finite]


def test_the_pretended_gpu_refuses_what_a_real_one_would(gpus):
    here = torch.ones(2)
    there = here.to("cuda:0")
    assert isinstance(there, OnGpu)
    with pytest.raises(AssertionError, match="on another device"):
        there + here
    assert (there + 1).cpu().tolist() == [2, 2]
    assert [what for what, _ in gpus.waits] == ["from the host", "to the host"]
