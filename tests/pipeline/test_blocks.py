"""Every queue gives the same latents however the layers are cut, and finishes every block once."""

from functools import cache

import pytest
import torch
from tiny_blocks import POLICIES, overrides, shallow

from longreel.jobs.render import plan_render
from longreel.pipeline.generator import Generator

pytestmark = pytest.mark.usefixtures("tiny_archs")


@cache
def latents(policy, *more, frames=25, num_stages=1):
    more = shallow(policy), *more, f"parallel.num_stages={num_stages}"
    settings = overrides(policy, *more, steps=3)
    return Generator(plan_render("a cat", frames=frames, seed=3, overrides=settings)).latents()


@pytest.mark.parametrize(
    ("policy", "dtype", "counts"),
    [(policy, "float32", (2, 3)) for policy in POLICIES]
    + [(policy, "bfloat16", (3,)) for policy in ("whole", "dualparal", "forcing", "causal")],
)
def test_any_number_of_stages_gives_the_bits_of_one(policy, dtype, counts):
    expected = latents(policy, f"model.dtype={dtype}")
    assert expected.shape == (1, 16, 7, 2, 4)
    assert expected.std() > 0.1
    for num_stages in counts:
        cut = latents(policy, f"model.dtype={dtype}", num_stages=num_stages)
        assert torch.equal(cut, expected), num_stages


@pytest.mark.parametrize("policy", [*POLICIES, "dualparal-grouped-pairs"])
def test_blocks_leave_in_order_once_and_whole(policy):
    """And progress is told in steps of blocks."""
    settings = overrides(policy, shallow(policy), steps=3)
    plan = plan_render("a cat", frames=41, seed=3, overrides=settings)
    told = []
    left = list(Generator(plan, lambda *said: told.append(said[:3])).blocks())
    total = plan.schedule.num_blocks * plan.levels.steps
    taken = [done for what, done, _ in told if what == "denoise"]
    assert (taken[0], taken[-1]) == (0, total)
    assert taken == sorted(taken)
    assert {of for what, _, of in told if what == "denoise"} == {total}
    assert [moved.block for moved in left] == list(range(plan.schedule.num_blocks))
    for moved in left:
        start, stop = plan.schedule.bounds(moved.block)
        assert moved.step == plan.levels.steps
        assert moved.latents_BCTHW.shape[2] == stop - start


@pytest.mark.parametrize("policy", ["dualparal-grouped", "buffer"])
def test_guidance_runs_as_two_passes_or_as_one_batch(policy):
    expected = latents(policy)  # in two passes
    batched = latents(policy, "sampling.guidance_mode=batched")
    torch.testing.assert_close(batched, expected, atol=1e-4, rtol=0.0)  # other GEMM shapes
    assert not torch.equal(latents(policy, "sampling.guidance_mode=none"), expected)


def test_guidance_in_an_interval_of_levels_keeps_both_branches_fed():
    ours = latents("dualparal", "sampling.guidance_from=0.9", "sampling.guidance_to=0.5")
    assert torch.isfinite(ours).all()
    assert not torch.equal(ours, latents("dualparal"))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("frames", [1, 5, 17])
def test_short_videos_are_made_too(policy, frames):
    made = latents(policy, "sampling.guidance_mode=none", frames=frames)
    assert made.shape[2] == 1 + (frames - 1) // 4


@pytest.mark.parametrize("policy", ["dualparal-grouped-pairs", "dualparal-staggered-wide"])
def test_several_bursts_and_wider_staggers_are_cut_without_a_trace_too(policy):
    assert torch.equal(latents(policy, num_stages=2), latents(policy))


@pytest.mark.parametrize("policy", ["forcing-causal", "forcing-causal-latents"])
def test_causal_runs_are_cut_without_a_trace_and_are_not_the_plain_window(policy):
    expected = latents(policy)
    for num_stages in (2, 3):
        assert torch.equal(latents(policy, num_stages=num_stages), expected), num_stages
    assert not torch.equal(latents("forcing"), expected)
