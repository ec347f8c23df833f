"""Every queue gives the same latents however the layers are cut, and finishes every block once."""

from dataclasses import replace

import pytest
import torch

from longreel.jobs.render import plan_render
from longreel.models import arch as archs
from longreel.models.arch import ModelArch, VaeArch, WanArch
from longreel.pipeline.generator import Generator

ARCH = ModelArch(
    dit=WanArch(num_layers=5, num_heads=2, head_dim=16, ffn_dim=24, text_dim=16),
    vae=VaeArch(base_dim=4, num_res_blocks=1),
    text_len=8,
    per_latent_timestep=True,
)
FEW = ["sampling.solver=renoise", "sampling.timesteps=[1000,750,500,250]", "sampling.steps=4"]
FEW += ["sampling.guidance_mode=none"]
CAUSAL = "model.arch=test-causal"
POLICIES = {
    "whole": [],
    "dualparal": ["blocks.size=3", "blocks.left=2", "blocks.right=2"],
    "dualparal-grouped": ["blocks.size=2", "blocks.left=2", "blocks.right=1", "blocks.depth=4"],
    "dualparal-staggered": ["blocks.size=3", "blocks.left=2", "blocks.right=1", "blocks.stagger=1"],
    "diagonal": ["blocks.size=4"],
    "buffer": ["blocks.size=2", "blocks.left=2"],
    "forcing": ["blocks.size=2", "blocks.left=2", "blocks.stagger=2", "blocks.window=8"],
    "rolling": [*FEW, CAUSAL, "blocks.size=2", "blocks.left=2", "blocks.sink=1"],
    "causal": [*FEW, CAUSAL, "blocks.size=3", "blocks.left=3", "blocks.sink=2"],
}


@pytest.fixture(autouse=True)
def _arch(monkeypatch):
    monkeypatch.setitem(archs.ARCHS, "test-blocks", ARCH)
    monkeypatch.setitem(archs.ARCHS, "test-causal", replace(ARCH, causal_latents=3))


def latents(policy, *overrides, frames=33, num_stages=1):
    plan = plan_render(
        "a cat",
        frames=frames,
        seed=3,
        overrides=[
            "model.arch=test-blocks",
            "model.text_cache=",
            "video.height=16",
            "video.width=32",
            "sampling.steps=5",
            "sampling.negative_prompt=a dog",
            f"blocks.policy={policy}",
            *POLICIES[policy],
            f"parallel.num_stages={num_stages}",
            *overrides,
        ],
    )
    return Generator(plan).latents()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("policy", POLICIES)
def test_any_number_of_stages_gives_the_bits_of_one(policy, dtype):
    expected = latents(policy, f"model.dtype={dtype}")
    assert expected.shape == (1, 16, 9, 2, 4)
    assert expected.std() > 0.1
    for num_stages in (2, 3, 5):
        cut = latents(policy, f"model.dtype={dtype}", num_stages=num_stages)
        assert torch.equal(cut, expected), num_stages
    assert torch.equal(latents(policy, f"model.dtype={dtype}"), expected)


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


@pytest.mark.parametrize(
    ("policy", "overrides"),
    [("dualparal-grouped", ["blocks.depth=1"]), ("dualparal-staggered", ["blocks.stagger=2"])],
)
def test_several_bursts_and_wider_staggers_are_cut_without_a_trace_too(policy, overrides):
    expected = latents(policy, *overrides)
    assert torch.equal(latents(policy, *overrides, num_stages=2), expected)
    assert not torch.equal(latents(policy), expected)
