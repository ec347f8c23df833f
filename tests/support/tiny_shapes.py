"""A DiT, VAE and clips as small as the recipes of the small models allow."""

from dataclasses import replace

import torch

from longreel.configs.train_small import DitTraining
from longreel.jobs.train.dit_recipe import DitRecipe
from longreel.jobs.train.latents import LatentClips
from longreel.models.arch import ModelArch, VaeArch, WanArch

DIT = WanArch(
    num_layers=2,
    num_heads=2,
    head_dim=12,
    ffn_dim=32,
    in_channels=4,
    out_channels=4,
    text_dim=16,
    freq_dim=16,
)
VAE = VaeArch(base_dim=4, z_dim=4, dim_mult=(1, 1, 1), num_res_blocks=1, patch=2)
ARCH = ModelArch(dit=DIT, vae=VAE, text_len=48)
MIX = DitTraining(latents=12, shortest=2, longest=6)


def random_clips(count, latents):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(count, 4, latents, 4, 4, generator=generator)
    return LatentClips(values.bfloat16(), range(count))


def dit_recipe(clips, vae, folder, **mix):
    return DitRecipe(ARCH, clips, seed=0, mix=replace(MIX, **mix), vae=vae, vae_folder=folder)
