"""Every queue gives the same latents however the layers are cut, and finishes every block once."""

import pytest
import torch
from tiny_blocks import POLICIES, overrides

from longreel.jobs.render import plan_render
from longreel.pipeline.generator import Generator

pytestmark = pytest.mark.usefixtures("tiny_archs")


def latents(policy, *more, frames=33, num_stages=1):
    settings = overrides(policy, *more, f"parallel.num_stages={num_stages}")
    return Generator(plan_render("a cat", frames=frames, seed=3, overrides=settings)).latents()


@pytest.mark.parametrize(("dtype", "counts"), [("float32", (1, 2, 5)), ("bfloat16", (3,))])
@pytest.mark.parametrize("policy", POLICIES)
def test_any_number_of_stages_gives_the_bits_of_one(policy, dtype, counts):
    expected = latents(policy, f"model.dtype={dtype}")
    assert expected.shape == (1, 16, 9, 2, 4)
    assert expected.std() > 0.1
    for num_stages in counts:
        cut = latents(policy, f"model.dtype={dtype}", num_stages=num_stages)
        assert torch.equal(cut, expected), num_stages


@pytest.mark.parametrize("policy", [*POLICIES, "dualparal-grouped-pairs"])
def test_blocks_leave_in_order_once_and_whole(policy):
    plan = plan_render("a cat", frames=57, seed=3, overrides=overrides(policy))
    left = list(Generator(plan).blocks())
    assert [moved.block for moved in left] == list(range(plan.schedule.num_blocks))
    for moved in left:
        start, stop = plan.schedule.bounds(moved.block)
        assert moved.step == plan.levels.steps
        assert moved.latents_BCTHW.shape[2] == stop - start


@pytest.mark.parametrize("mode", ["sequential", "batched", "none"])
@pytest.mark.parametrize("policy", ["dualparal-grouped", "buffer"])
def test_guidance_runs_as_two_passes_or_as_one_batch(policy, mode):
    expected = latents(policy, "sampling.guidance_mode=sequential")
    ours = latents(policy, f"sampling.guidance_mode={mode}")
    if mode == "none":
        assert not torch.equal(ours, expected)
    else:
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0.0)  # other GEMM shapes


def test_guidance_in_an_interval_of_levels_keeps_both_branches_fed():
    ours = latents("dualparal", "sampling.guidance_from=0.9", "sampling.guidance_to=0.5")
    assert torch.isfinite(ours).all()
    assert not torch.equal(ours, latents("dualparal"))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("frames", [1, 5, 17])
def test_short_videos_are_made_too(policy, frames):
    assert latents(policy, frames=frames).shape[2] == 1 + (frames - 1) // 4


@pytest.mark.parametrize("policy", ["dualparal-grouped-pairs", "dualparal-staggered-wide"])
def test_several_bursts_and_wider_staggers_are_cut_without_a_trace_too(policy):
    assert torch.equal(latents(policy, num_stages=2), latents(policy))


@pytest.mark.parametrize("policy", ["forcing-causal", "forcing-causal-latents"])
def test_causal_runs_are_cut_without_a_trace_and_are_not_the_plain_window(policy):
    expected = latents(policy)
    for num_stages in (2, 3, 5):
        assert torch.equal(latents(policy, num_stages=num_stages), expected), num_stages
    assert not torch.equal(latents("forcing"), expected)
