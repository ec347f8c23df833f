"""AutoencoderKLWan from a VaeArch: its diffusers config, and modules without a checkpoint."""

from typing import TYPE_CHECKING, Any

import torch

from .arch import VaeArch
from .importing import importing
from .random_weights import fill_random

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

# What the latents of the published VAEs measure, per channel: (mean, standard deviation).
# fmt: off
_STATISTICS: dict[int, tuple[tuple[float, ...], tuple[float, ...]]] = {
    16: (  # Wan 2.1
        (
            -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
            0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
        ),
        (
            2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
            3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
        ),
    ),
    48: (  # Wan 2.2 TI2V-5B
        (
            -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557,
            -0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825,
            -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
            -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230,
            -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748,
            0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
        ),
        (
            0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013,
            0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978,
            0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
            0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093,
            0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
            0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
        ),
    ),
}
# fmt: on


def vae_config(arch: VaeArch) -> dict[str, Any]:
    """The arguments of AutoencoderKLWan: what a diffusers folder holds in vae/config.json."""
    levels = len(arch.dim_mult) - 1
    patch = arch.patch or 1
    assert arch.time_stride == 4, "diffusers encodes and decodes four frames to a latent"
    assert arch.space_stride == 2**levels * patch, "dim_mult and patch give the stride"
    # z_dim tells the published VAEs apart; others have no statistics, and go unnormalised
    mean, std = _STATISTICS.get(arch.z_dim, ((0.0,) * arch.z_dim, (1.0,) * arch.z_dim))
    return {
        "base_dim": arch.base_dim,
        "decoder_base_dim": arch.decoder_base_dim,
        "z_dim": arch.z_dim,
        "dim_mult": list(arch.dim_mult),
        "num_res_blocks": arch.num_res_blocks,
        "attn_scales": [],
        "temperal_downsample": [False] * (levels - 2) + [True] * 2,
        "latents_mean": list(mean),
        "latents_std": list(std),
        "is_residual": arch.residual,
        "in_channels": 3 * patch**2,
        "out_channels": 3 * patch**2,
        "patch_size": arch.patch,
        "scale_factor_temporal": arch.time_stride,
        "scale_factor_spatial": arch.space_stride,
    }


def build_vae(arch: VaeArch, **config: Any) -> "AutoencoderKLWan":
    """On the current default device, for inference; `config` overrides single entries."""
    with importing():
        import diffusers

        create: Any = diffusers.AutoencoderKLWan  # untyped in diffusers
    vae: AutoencoderKLWan = create(**{**vae_config(arch), **config}).eval().requires_grad_(False)
    return vae


def random_vae(
    arch: VaeArch,
    seed: int,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> "AutoencoderKLWan":
    """Untrained weights that depend on arch and seed alone."""
    with torch.device("meta"):
        vae = build_vae(arch)
    fill_random(vae, seed, device=device, dtype=dtype)
    return vae
