"""The classic queue beside a second, plain one: a loop over blocks on diffusers' own transformer.

It follows what DualParal published: one block admitted a sweep, the newest served first; the left
neighbour's last latents recomputed at the block's own timestep, the right neighbour's keys and
values of this sweep concatenated; positions from 0 in every window; a scheduler per block.
"""

import copy
from dataclasses import replace
from functools import partial

import pytest
import tiny_pipeline
import torch

from longreel.jobs.render import plan_render
from longreel.models import arch as archs
from longreel.pipeline.generator import Generator
from longreel.pipeline.noise import window_noise
from longreel.pipeline.parts import encode_texts

SIZE, LEFT, RIGHT, STEPS, SHIFT, SCALE, SEED = 3, 2, 2, 4, 3.0, 4.0, 11


class _CachingAttention:
    """diffusers' self-attention with keys and values of another window appended, its own kept."""

    def __init__(self, rope, keep: slice):
        self.rope = rope  # of the window and of what may follow it
        self.keep = keep  # tokens whose keys and values are for the left neighbour
        self.right = {}  # by layer
        self.made = {}

    def attend(self, layer):
        def call(attn, hidden_states, *args, **kwargs):
            q = attn.norm_q(attn.to_q(hidden_states))
            k, v = attn.to_k(hidden_states), attn.to_v(hidden_states)
            self.made[layer] = k[:, self.keep], v[:, self.keep]
            if layer in self.right:
                k = torch.cat([k, self.right[layer][0]], dim=1)
                v = torch.cat([v, self.right[layer][1]], dim=1)
            q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (q, attn.norm_k(k), v))
            q, k = self._turn(q), self._turn(k)
            y = torch.nn.functional.scaled_dot_product_attention(
                *(x.transpose(1, 2) for x in (q, k, v))
            )
            return attn.to_out[0](y.transpose(1, 2).flatten(2))

        return call

    def _turn(self, x):
        cos, sin = (table[:, : x.shape[1], :, ::2] for table in self.rope)
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


@torch.no_grad()
def _velocity(model, window, timestep, text, right, num_own):
    """What the model says of a window's own latents, and what it leaves for the left neighbour."""
    tokens = window.shape[3] * window.shape[4] // 4
    own = (window.shape[2] - num_own) * tokens
    longest = torch.zeros(1, 16, window.shape[2] + RIGHT, *window.shape[3:])
    caching = _CachingAttention(model.rope(longest), slice(own, own + RIGHT * tokens))
    caching.right = right
    for i, block in enumerate(model.blocks):
        block.attn1.forward = caching.attend(i).__get__(block.attn1)
    told = timestep.repeat_interleave(tokens)[None] if timestep.ndim else timestep.expand(1)
    out = model(window, told, text, return_dict=False)[0]
    return out[:, :, -num_own:], caching.made


def _plain_queue(model, scheduler, noise, text, negative, levels="window"):
    bounds = [(b * SIZE, (b + 1) * SIZE) for b in range(noise.shape[2] // SIZE)]
    bounds[-1] = bounds[-1][0], noise.shape[2]
    z, done, schedulers = {}, {}, {}
    while len(done) < len(bounds) or any(steps < STEPS for steps in done.values()):
        if len(done) < len(bounds):
            new = len(done)
            z[new], done[new] = noise[:, :, slice(*bounds[new])], 0
            schedulers[new] = copy.deepcopy(scheduler)
        right = ({}, {})  # per branch, emptied at the start of every sweep
        for b in sorted((b for b in done if done[b] < STEPS), reverse=True):
            t = schedulers[b].timesteps[done[b]]
            left = z[b - 1][:, :, -LEFT:] if b else z[b][:, :, :0]
            window = torch.cat([left, z[b]], dim=2)
            size = z[b].shape[2]
            told = t
            if levels == "latent":  # the left neighbour is a step ahead, or done
                ahead = [*schedulers[b].timesteps, torch.tensor(0)][done[b - 1] if b else 0]
                told = torch.cat([ahead.expand(left.shape[2]), t.expand(size)])
            cond, made = _velocity(model, window, told, text, right[0], size)
            uncond, made_uncond = _velocity(model, window, told, negative, right[1], size)
            right = (made, made_uncond)
            velocity = uncond + SCALE * (cond - uncond)
            z[b] = schedulers[b].step(velocity, t, z[b], return_dict=False)[0]
            done[b] += 1
    return torch.cat([z[b] for b in sorted(z)], dim=2)


def _plain_burst(model, scheduler, noise, text, negative):
    """All blocks take every step together, the newest first; context is to the left alone."""
    z = list(torch.split(noise, SIZE, dim=2))
    schedulers = [copy.deepcopy(scheduler) for _ in z]
    for step in range(STEPS):
        for b in reversed(range(len(z))):
            t = schedulers[b].timesteps[step]
            window = torch.cat([z[b - 1][:, :, -LEFT:] if b else z[b][:, :, :0], z[b]], dim=2)
            cond, _ = _velocity(model, window, t, text, {}, SIZE)
            uncond, _ = _velocity(model, window, t, negative, {}, SIZE)
            velocity = uncond + SCALE * (cond - uncond)
            z[b] = schedulers[b].step(velocity, t, z[b], return_dict=False)[0]
    return torch.cat(z, dim=2)


@pytest.mark.parametrize(
    ("frames", "policy", "plain", "levels"),
    [
        (45, "dualparal", _plain_queue, "window"),
        (45, "dualparal", partial(_plain_queue, levels="latent"), "latent"),
        (13, "dualparal", _plain_queue, "window"),
        (45, "dualparal-grouped", _plain_burst, "window"),
    ],
)
def test_a_queue_equals_a_plain_loop_over_diffusers(
    frames, policy, plain, levels, tmp_path, monkeypatch
):
    arch = replace(tiny_pipeline.ARCHS["test-t2v"], per_latent_timestep=True)
    monkeypatch.setitem(archs.ARCHS, "test-t2v", arch)
    checkpoint = tiny_pipeline.write_checkpoint(tmp_path, tiny_pipeline.ARCHS["test-t2v"])
    overrides = [
        "model.arch=test-t2v",
        f"model.checkpoint={checkpoint.folder}",
        "model.text_cache=",
        "video.height=16",
        "video.width=32",
        f"sampling.steps={STEPS}",
        f"sampling.shift={SHIFT}",
        f"sampling.guidance={SCALE}",
        f"blocks.policy={policy}",
        "blocks.noise=independent",
        f"blocks.size={SIZE}",
        f"blocks.left={LEFT}",
        f"blocks.right={RIGHT if policy == 'dualparal' else 0}",
        f"blocks.levels={levels}",
        "parallel.num_stages=2",
        "parallel.backend=local",
        *(["blocks.depth=4"] if policy == "dualparal-grouped" else []),
    ]
    plan = plan_render("a red cat", frames=frames, seed=SEED, overrides=overrides)
    ours = Generator(plan).latents()

    text, negative = encode_texts(plan, ["a red cat", ""]).split(1)
    noise = window_noise(SEED, 0, ours.shape[2], (16, 2, 4))
    scheduler = checkpoint.scheduler(SHIFT)
    scheduler.set_timesteps(STEPS)
    theirs = plain(checkpoint.parts["transformer"], scheduler, noise, text, negative)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0.0)  # the bound
    assert (ours - noise).abs().mean() > 0.1
