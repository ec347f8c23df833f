"""Diffusion forcing in causal runs beside diffusers' SkyReels-V2: its pipeline, a plain loop."""

import copy
from dataclasses import replace

import pytest
import tiny_pipeline
import torch
from diffusers import SkyReelsV2DiffusionForcingPipeline, UniPCMultistepScheduler
from tiny_wan import diffusers_model

from longreel.jobs.render import plan_render
from longreel.models import arch as archs
from longreel.pipeline.generator import Generator
from longreel.pipeline.noise import window_noise
from longreel.pipeline.parts import encode_texts

STEPS, SHIFT, SCALE, SEED, FRAMES = 5, 3.0, 4.0, 11, 61  # 16 latents
PROMPT, NEGATIVE = "a red cat", "a dog"
ARCH = replace(
    tiny_pipeline.ARCHS["test-t2v"], per_latent_timestep=True, causal_windows=True, text_len=32
)


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.setitem(archs.ARCHS, "test-df", ARCH)
    made = tiny_pipeline.write_checkpoint(tmp_path, ARCH)
    made.parts["transformer"] = diffusers_model(ARCH.dit, skyreels=True)
    made.parts["transformer"].save_pretrained(tmp_path / "transformer")
    return made


def make_plan(checkpoint, *, size, causal, stagger):
    overrides = [
        "model.arch=test-df",
        f"model.checkpoint={checkpoint.folder}",
        "model.text_cache=",
        "video.height=16",
        "video.width=32",
        f"sampling.steps={STEPS}",
        f"sampling.shift={SHIFT}",
        f"sampling.guidance={SCALE}",
        f"sampling.negative_prompt={NEGATIVE}",
        "blocks.policy=forcing",
        f"blocks.size={size}",
        f"blocks.causal={causal}",
        f"blocks.stagger={stagger}",
        "blocks.left=16",  # all that is clean stays in sight, and as it is
        "blocks.prefix_level=0",
        "blocks.window=48",
        "parallel.num_stages=2",
        "parallel.backend=local",
    ]
    return plan_render(PROMPT, frames=FRAMES, seed=SEED, overrides=overrides)


class OwnSamples(UniPCMultistepScheduler):
    """It remembers the last sample, which the pipeline then overwrites in place."""

    def step(self, velocity, timestep, sample, **more):
        return super().step(velocity, timestep, sample.clone(), **more)


@pytest.mark.parametrize("stagger", [2, 5])
def test_causal_forcing_equals_diffusers_pipeline(checkpoint, stagger):
    """Theirs keeps blocks that have not begun in the window: in causal runs nobody sees them."""
    ours = Generator(make_plan(checkpoint, size=4, causal=4, stagger=stagger)).latents()
    pipeline = SkyReelsV2DiffusionForcingPipeline(
        **dict(checkpoint.parts) | tiny_pipeline.read_text_parts(checkpoint.folder),
        scheduler=OwnSamples.from_config(checkpoint.scheduler(SHIFT).config),
    )
    pipeline.set_progress_bar_config(disable=True)
    noise = window_noise(SEED, 0, ours.shape[2], (16, 2, 4))
    # given latents, it forgets to say how many they are
    pipeline.prepare_latents = lambda *_, **__: (noise.clone(), noise.shape[2], None, 0)
    theirs = pipeline(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        num_frames=FRAMES,
        height=16,
        width=32,
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        output_type="latent",
        max_sequence_length=32,
        ar_step=stagger,
        causal_block_size=4,
        fps=16,
    ).frames
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0.0)
    assert (ours - noise).abs().mean() > 0.1


@torch.no_grad()
def plain_loop(model, scheduler, noise, text, negative, *, size, stagger):
    """All blocks in one window, each `stagger` rows behind its left neighbour."""
    z = list(torch.split(noise, size, dim=2))
    done, solvers = [0] * len(z), [copy.deepcopy(scheduler) for _ in z]
    times = [*scheduler.timesteps.tolist(), 0]
    while min(done) < STEPS:
        moving = [
            b
            for b, steps in enumerate(done)
            if steps < STEPS and (b == 0 or done[b - 1] >= min(STEPS, steps + stagger))
        ]
        t = torch.tensor([[times[steps] for steps in done for _ in range(size)]])
        cond, uncond = (
            model(torch.cat(z, dim=2), t, words, enable_diffusion_forcing=True, return_dict=False)[
                0
            ]
            for words in (text, negative)
        )
        velocities = torch.split(uncond + SCALE * (cond - uncond), size, dim=2)
        for b in moving:
            step = solvers[b].timesteps[done[b]]
            z[b] = solvers[b].step(velocities[b], step, z[b], return_dict=False)[0]
            done[b] += 1
    return torch.cat(z, dim=2)


@pytest.mark.parametrize(("size", "causal", "same"), [(4, 4, True), (4, 2, True), (4, 8, False)])
def test_causal_forcing_equals_a_plain_loop_over_diffusers(checkpoint, size, causal, same):
    ours = Generator(make_plan(checkpoint, size=size, causal=min(4, causal), stagger=2)).latents()
    model = checkpoint.parts["transformer"]
    model._set_ar_attention(causal)
    text, negative = encode_texts(
        make_plan(checkpoint, size=4, causal=4, stagger=2), [PROMPT, NEGATIVE]
    ).split(1)
    scheduler = checkpoint.scheduler(SHIFT)
    scheduler.set_timesteps(STEPS)
    noise = window_noise(SEED, 0, ours.shape[2], (16, 2, 4))
    theirs = plain_loop(model, scheduler, noise, text, negative, size=size, stagger=2)
    if same:
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0.0)  # the bound
    else:  # other runs, other videos
        assert (ours - theirs).abs().max() > 1e-2
