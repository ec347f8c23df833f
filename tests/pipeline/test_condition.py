"""How pictures enter a model: what diffusers' pipeline makes of the same pictures is the truth."""

import pytest
import tiny_pipeline
import torch
from diffusers import WanImageToVideoPipeline
from tiny_wan import diffusers_model

from longreel.models.vae_build import random_vae
from longreel.models.vae_cpu import FastOnCpu
from longreel.pipeline.condition import Condition, encode_pictures

HEIGHT, WIDTH = 32, 48
VAES = {
    "channels": random_vae(tiny_pipeline.ARCHS["test-i2v"].vae, seed=2),
    "first-latent": random_vae(tiny_pipeline.ARCHS["test-ti2v"].vae, seed=2),
}


def pictures():
    pixels = torch.rand(2, 1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    return 2 * pixels - 1


def ours(kind, num_latents, first, last=None, tile=0):
    arch = tiny_pipeline.ARCHS["test-i2v" if kind == "channels" else "test-ti2v"]
    return encode_pictures(arch, VAES[kind], tile, num_latents, first, last, None)


@torch.no_grad()
def theirs(kind, num_frames, first, last=None):
    pipeline = WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=VAES[kind],
        scheduler=None,
        transformer=diffusers_model(tiny_pipeline.ARCHS["test-t2v"].dit),
        expand_timesteps=kind == "first-latent",
    )
    with FastOnCpu():  # as ours, so that bits can be compared
        _, condition, *_ = pipeline.prepare_latents(
            first,
            1,
            VAES[kind].config.z_dim,
            HEIGHT,
            WIDTH,
            num_frames,
            dtype=torch.float32,
            generator=torch.Generator(),
            last_image=last,
        )
    return condition


@pytest.mark.parametrize("with_last", [False, True])
@pytest.mark.parametrize("num_latents", [2, 4])
def test_channels_are_diffusers_mask_and_latents_bit_for_bit(num_latents, with_last):
    first, last = pictures()
    last = last if with_last else None
    expected = theirs("channels", 4 * num_latents - 3, first, last)
    made = ours("channels", num_latents, first, last).channels_BCTHW
    assert made.shape == (1, 20, num_latents, HEIGHT // 8, WIDTH // 8)
    assert torch.equal(made, expected)


def test_a_single_frame_has_the_picture_and_nothing_after_it():
    first, _ = pictures()
    made = ours("channels", 1, first).channels_BCTHW
    assert torch.equal(made, theirs("channels", 1, first))
    assert made[:, :4].min() == 1


def test_the_first_latent_is_the_encoded_picture_of_diffusers_bit_for_bit():
    first, _ = pictures()
    condition = ours("first-latent", 3, first)
    assert torch.equal(condition.first_BCTHW, theirs("first-latent", 1, first))
    assert (condition.channels_BCTHW, condition.tokens_BND) == (None, None)


def test_a_tile_as_large_as_the_picture_changes_no_bit():
    first, last = pictures()
    whole = ours("channels", 3, first, last).channels_BCTHW
    assert torch.equal(ours("channels", 3, first, last, tile=64).channels_BCTHW, whole)


def test_without_pictures_nothing_is_added():
    latents = torch.randn(1, 4, 3, 2, 2)
    assert Condition().pin(latents, 0) is latents
    assert Condition().add_channels(latents, [(0, 3)]) is latents


def test_a_window_has_what_was_given_for_its_place_in_the_video():
    latents = torch.randn(1, 4, 3, 2, 2)
    given, channels = torch.randn(1, 4, 1, 2, 2), torch.randn(1, 5, 9, 2, 2)
    condition = Condition(first_BCTHW=given, channels_BCTHW=channels)
    assert torch.equal(condition.pin(latents, 0)[:, :, :1], given)
    assert torch.equal(condition.pin(latents, 0)[:, :, 1:], latents[:, :, 1:])
    assert condition.pin(latents, 3) is latents
    window = condition.add_channels(latents, [(2, 3), (6, 8)])
    assert torch.equal(window[:, :4], latents)
    assert torch.equal(window[:, 4:], channels[:, :, [2, 6, 7]])
