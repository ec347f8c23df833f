"""A Wan VAE run on whole clips at once: what its stream computes, in fewer and larger operations.

B batch, C channels, T frames or latents, H height, W width.

diffusers goes through a clip chunk by chunk, with what convolutions remember between two chunks;
at the small sizes of a training on CPUs that bookkeeping takes more time than the arithmetic. All
is causal, so the whole clip gives the same numbers.
"""

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, patchify, unpatchify
from einops import rearrange
from torch import Tensor


def encode_whole(vae: Any, frames_BCTHW: Tensor) -> Tensor:
    """The mode of the latents."""
    encoder = vae.encoder
    x_BCTHW = patchify(frames_BCTHW, vae.config.patch_size or 1)
    x_BCTHW = encoder.conv_in(x_BCTHW)
    for layer in encoder.down_blocks:
        x_BCTHW = _halve(layer, x_BCTHW) if isinstance(layer, WanResample) else layer(x_BCTHW)
    moments_BCTHW: Tensor = vae.quant_conv(_tail(encoder, encoder.mid_block(x_BCTHW)))
    return moments_BCTHW.chunk(2, dim=1)[0]


def decode_whole(vae: Any, z_BCTHW: Tensor) -> Tensor:
    """Frames that are not cut off at -1 and 1."""
    decoder = vae.decoder
    x_BCTHW = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(z_BCTHW)))
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x_BCTHW = resnet(x_BCTHW)
        for layer in block.upsamplers or ():
            x_BCTHW = _double(layer, x_BCTHW)
    frames_BCTHW: Tensor = unpatchify(_tail(decoder, x_BCTHW), vae.config.patch_size or 1)
    return frames_BCTHW


def _tail(part: Any, x_BCTHW: Tensor) -> Tensor:
    out_BCTHW: Tensor = part.conv_out(part.nonlinearity(part.norm_out(x_BCTHW)))
    return out_BCTHW


def _halve(layer: Any, x_BCTHW: Tensor) -> Tensor:
    x_BCTHW = _by_frame(layer.resample, x_BCTHW)
    if layer.mode != "downsample3d":
        return x_BCTHW
    first_BCTHW = x_BCTHW[:, :, :1]  # stands alone, all others are taken in pairs
    if x_BCTHW.shape[2] == 1:
        return first_BCTHW
    return torch.cat([first_BCTHW, layer.time_conv(x_BCTHW)], dim=2)


def _double(layer: Any, x_BCTHW: Tensor) -> Tensor:
    if layer.mode == "upsample3d" and x_BCTHW.shape[2] > 1:
        # the first stays one, and the others do not see it
        both_BCTHW = layer.time_conv(x_BCTHW[:, :, 1:])
        pairs_BCTHW = rearrange(both_BCTHW, "B (two C) T H W -> B C (T two) H W", two=2)
        x_BCTHW = torch.cat([x_BCTHW[:, :, :1], pairs_BCTHW], dim=2)
    return _by_frame(layer.resample, x_BCTHW)


def _by_frame(layer: Any, x_BCTHW: Tensor) -> Tensor:
    frames_NCHW = layer(rearrange(x_BCTHW, "B C T H W -> (B T) C H W"))
    y_BCTHW: Tensor = rearrange(frames_NCHW, "(B T) C H W -> B C T H W", B=len(x_BCTHW))
    return y_BCTHW
