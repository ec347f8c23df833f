"""A clip run whole through the VAE has the numbers of diffusers' way, chunk by chunk."""

import pytest
import torch

from longreel.jobs.train.vae_recipe import start_frame_by_frame, start_from_identity
from longreel.jobs.train.vae_whole import decode_whole, encode_whole
from longreel.models.arch import VaeArch
from longreel.models.vae_build import build_vae


@pytest.fixture(params=[1, 2], ids=lambda patch: f"patch{patch}")
def vae(request):
    torch.manual_seed(0)
    patch = request.param
    arch = VaeArch(
        base_dim=4,
        z_dim=3,
        dim_mult=(1, 2, 2),
        num_res_blocks=1,
        patch=None if patch == 1 else patch,
        space_stride=4 * patch,
    )
    return build_vae(arch)


# sums of some hundred terms near 1, in an order that depends on how many frames there are at once
CLOSE = {"rtol": 0, "atol": 5e-6}


@pytest.mark.parametrize("frames", [1, 5, 17])
@torch.no_grad()
def test_latents_and_frames_are_those_of_the_stream(vae, frames):
    frames_BCTHW = torch.rand(2, 3, frames, 16, 24) * 2 - 1
    expected = vae.encode(frames_BCTHW).latent_dist.mode()
    torch.testing.assert_close(encode_whole(vae, frames_BCTHW), expected, **CLOSE)
    again = vae.decode(expected).sample
    made = decode_whole(vae, expected).clamp(-1, 1)
    torch.testing.assert_close(made, again, **CLOSE)


@torch.no_grad()
def test_at_the_start_still_frames_are_alike_in_every_latent(vae):
    start_frame_by_frame(vae)
    start_from_identity(vae)
    still_BCTHW = (torch.rand(1, 3, 1, 16, 16) * 2 - 1).expand(-1, -1, 9, -1, -1)
    z_BCTHW = encode_whole(vae, still_BCTHW)
    torch.testing.assert_close(z_BCTHW, z_BCTHW[:, :, :1].expand_as(z_BCTHW), rtol=0, atol=1e-5)
