"""The faster ways of a VAE on a CPU have the numbers of torch's own, and are taken."""

import pytest
import tiny_vae
import torch
from torch import nn
from torch.nn.functional import normalize

from longreel.models.vae import StreamingDecoder, StreamingEncoder
from longreel.models.vae_cpu import FastOnCpu

# sums of some thousand terms near 1, in another order
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize("stride", [1, (1, 2, 2)])
@pytest.mark.parametrize("kernel", [3, (1, 3, 3), (3, 1, 1), 1])
def test_convolutions(kernel, stride):
    torch.manual_seed(0)
    conv = nn.Conv3d(7, 5, kernel, stride=stride, bias=stride == 1)
    x_BCTHW = torch.randn(2, 7, 4, 9, 11)
    expected = conv(x_BCTHW)
    with FastOnCpu():
        made = conv(x_BCTHW)
    torch.testing.assert_close(made, expected, **CLOSE)


def test_norms_over_channels_also_of_nothing_but_zeros():
    x_BCTHW = torch.randn(2, 7, 4, 3, 5)
    x_BCTHW[0, :, 1] = 0
    with FastOnCpu():
        made, other = normalize(x_BCTHW, dim=1), normalize(x_BCTHW, dim=-1)
    torch.testing.assert_close(made, normalize(x_BCTHW, dim=1), **CLOSE)
    assert torch.equal(other, normalize(x_BCTHW, dim=-1))


@pytest.mark.parametrize("kind", tiny_vae.VAES)
@torch.no_grad()
def test_a_stream_takes_them_and_has_diffusers_numbers(kind):
    vae = tiny_vae.VAES[kind]
    mean, inverse_std = tiny_vae.statistics(vae, torch.float32)
    latents_BCTHW = torch.randn(1, vae.config.z_dim, 3, 4, 4)
    expected = vae.decode(latents_BCTHW / inverse_std + mean).sample
    with torch.profiler.profile() as profile:
        made = StreamingDecoder(vae).decode(latents_BCTHW)
    asked = {event.key for event in profile.key_averages()}
    assert "aten::mkldnn_convolution" in asked
    assert "aten::linalg_vector_norm" not in asked
    torch.testing.assert_close(made, expected, **CLOSE)
    frames_BCTHW = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    mode_BCTHW = vae.encode(frames_BCTHW).latent_dist.mode()
    encoded = StreamingEncoder(vae).encode(frames_BCTHW)
    torch.testing.assert_close(encoded, (mode_BCTHW - mean) * inverse_std, **CLOSE)


def test_other_types_are_left_to_torch():
    conv = nn.Conv3d(7, 5, 3).bfloat16()
    x_BCTHW = torch.randn(2, 7, 4, 9, 11, dtype=torch.bfloat16)
    expected = conv(x_BCTHW), normalize(x_BCTHW, dim=1)
    with FastOnCpu():
        made = conv(x_BCTHW), normalize(x_BCTHW, dim=1)
    assert all(map(torch.equal, made, expected))
