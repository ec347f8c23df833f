"""Tiny random VAEs of both published kinds, diffusers' one-shot results, the original names.

One-shot results come of the same convolutions and norms as ours (`models/vae_cpu.py`), so that they
can be compared bit for bit; tests/models/test_vae_cpu.py compares these with torch's own.
"""

import re

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from longreel.models.arch import VaeArch
from longreel.models.vae_build import random_vae
from longreel.models.vae_cpu import FastOnCpu

# as published: Wan 2.1 has its statistics, the residual kind of Wan 2.2 patches of 2 x 2 pixels
PLAIN = VaeArch(base_dim=8, num_res_blocks=1)
RESIDUAL = VaeArch(
    base_dim=8,
    decoder_base_dim=12,
    num_res_blocks=1,
    z_dim=48,
    space_stride=16,
    residual=True,
    patch=2,
)
ARCHS = {"plain": PLAIN, "residual": RESIDUAL}
VAES = {kind: random_vae(arch, seed=3) for kind, arch in ARCHS.items()}


def statistics(vae: AutoencoderKLWan, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and inverse deviation as WanPipeline makes them."""
    shape = (1, vae.config.z_dim, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(shape).to(dtype)
    return torch.tensor(vae.config.latents_mean).view(shape).to(dtype), 1.0 / std


@torch.no_grad()
def decode_at_once(vae: AutoencoderKLWan, latents_BCTHW: Tensor) -> Tensor:
    mean, inverse_std = statistics(vae, vae.dtype)
    with FastOnCpu():
        return vae.decode(latents_BCTHW.to(vae.dtype) / inverse_std + mean).sample


@torch.no_grad()
def encode_at_once(vae: AutoencoderKLWan, frames_BCTHW: Tensor) -> Tensor:
    with FastOnCpu():
        mode_BCTHW = vae.encode(frames_BCTHW.to(vae.dtype)).latent_dist.mode().float()
    mean, inverse_std = statistics(vae, torch.float32)
    return (mode_BCTHW - mean) * inverse_std


def original_name(name: str, num_res_blocks: int, residual: bool) -> str:
    """diffusers' name of a tensor -> its name in Wan2.1_VAE.pth or Wan2.2_VAE.pth."""
    num_up = num_res_blocks + 2  # the decoder's layers of one level, upsampling included

    def level(match: re.Match[str]) -> str:
        way, i, layer, j = match[1], int(match[2]), match[3], int(match[4] or 0)
        if layer.startswith(("down", "up")):  # the layer that changes the size comes last
            j = num_res_blocks + (way == "up")
        return f"{way}samples.{i}.{way}samples.{j}." if residual else f"upsamples.{i * num_up + j}."

    for pattern, replacement in (
        (r"^quant_conv", "conv1"),
        (r"^post_quant_conv", "conv2"),
        (r"conv_in\.", "conv1."),
        (r"norm_out\.", "head.0."),
        (r"conv_out\.", "head.2."),
        (r"mid_block\.attentions\.0", "middle.1"),
        (r"mid_block\.resnets\.0", "middle.0"),
        (r"mid_block\.resnets\.1", "middle.2"),
        (r"(?<=[0-9]\.)norm1", "residual.0"),
        (r"(?<=[0-9]\.)conv1", "residual.2"),
        (r"(?<=[0-9]\.)norm2", "residual.3"),
        (r"(?<=[0-9]\.)conv2", "residual.6"),
        (r"conv_shortcut", "shortcut"),
    ):
        name = re.sub(pattern, replacement, name)
    if residual or "up_blocks" in name:
        layers = r"(resnets|downsampler|upsamplers?)\.(?:(\d+)\.)?"
        return re.sub(rf"(down|up)_blocks\.(\d+)\.{layers}", level, name)
    return name.replace("down_blocks", "downsamples")
