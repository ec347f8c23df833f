"""A causal video VAE driven one latent at a time, its convolutions' state carried over.

B batch, C channels, T frames or latents, H height, W width. Latents are normalised,
(z - mean) / std per channel, as the DiT reads and writes them; frames lie in [-1, 1].
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import Tensor

from .vae_state import DecoderState, EncoderState, Stream
from .vae_tiles import tiling

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

_FRAMES_PER_LATENT = 4  # but one for the first


class StreamingDecoder:
    """Latents in, frames out, in the order of the video; the VAE itself stays unchanged.

    Several streams may share one VAE. Frames do not depend on how latents are split over calls, and
    are those of `vae.decode` of all at once, bit for bit where both have the convolutions and norms
    of `FastOnCpu`. (Below 12 latents a frame the first convolution of `vae.decode`, which sees all
    latents together, rounds differently: 1e-7 there.)
    """

    def __init__(
        self, vae: "AutoencoderKLWan", tile: int = 0, mine: Sequence[int] | None = None
    ) -> None:
        """`mine`: the tiles that `decode_tiles` makes; none: all."""
        self._vae: Any = vae  # what diffusers shows type checkers has no attributes
        stride, patch = _cells(self._vae)
        self._tiling = tiling(tile, cell=stride, out_cell=patch, space_stride=stride)
        self._mine = mine
        self._mean, self._inverse_std = _statistics(self._vae, self._vae.dtype)
        self.reset()

    def decode(self, latents_BCTHW: Tensor) -> Tensor:
        """The frames of the next latents: one for the first of a stream, four for any other."""
        height, width = latents_BCTHW.shape[-2:]
        latents = torch.split(latents_BCTHW, 1, dim=2)
        frames = [self.join(self.decode_tiles(latent), height, width) for latent in latents]
        return torch.cat(frames, dim=2)

    @torch.no_grad()
    def decode_tiles(self, latent_BCTHW: Tensor) -> list[Tensor]:
        """Of the next latent, before they are joined."""
        _check_channels("latents", latent_BCTHW, self._vae.config.z_dim)
        self._stream.admit("latents", latent_BCTHW)
        # where the VAE is, which its own `device` looks for
        z_BCTHW = latent_BCTHW.to(self._mean.device, self._mean.dtype)
        tiles = self._tiling.cut(z_BCTHW / self._inverse_std + self._mean)
        first = self._stream.seen == 0
        return self._stream.map(
            tiles if self._mine is None else [tiles[i] for i in self._mine],
            lambda tile, cache: self._vae.decoder(
                self._vae.post_quant_conv(tile), feat_cache=cache, feat_idx=[0], first_chunk=first
            ),
        )

    @torch.no_grad()
    def join(self, tiles: Sequence[Tensor], height: int, width: int) -> Tensor:
        """The frames of a latent of this size, from all of its tiles."""
        frames_BCTHW = self._tiling.join(tiles, height, width)
        if patch := self._vae.config.patch_size:
            frames_BCTHW = rearrange(
                frames_BCTHW, "B (C r q) T H W -> B C T (H q) (W r)", q=patch, r=patch
            )
        return frames_BCTHW.clamp(-1.0, 1.0)

    def state(self) -> DecoderState:
        """Where the stream stands (its own tiles); it may be kept while decoding goes on."""
        return DecoderState(*self._stream.freeze())

    def restore(self, state: DecoderState) -> None:
        """Go on from a state of a decoder with the same weights and dtype; of all tiles, where this
        one makes some of them. One of whole frames may be gone on from in tiles."""
        if len(state.caches) == 1:
            state = state.cut(self._tiling)
        if self._mine is not None:
            state = replace(state, caches=tuple(state.caches[i] for i in self._mine))
        self._stream.restore(state, self._vae.device, self._vae.dtype)

    def reset(self) -> None:
        """Forget the stream: the next latent is a first one."""
        self._stream = Stream(self._vae.decoder)


class StreamingEncoder:
    """Frames in, latents out: the first frame is one latent, then every four are one.

    The mode of the VAE's distribution, in float32, as diffusers' pipelines condition on it.
    """

    def __init__(self, vae: "AutoencoderKLWan", tile: int = 0) -> None:
        self._vae: Any = vae  # what diffusers shows type checkers has no attributes
        stride, patch = _cells(self._vae)
        self._tiling = tiling(tile, cell=patch, out_cell=stride, space_stride=stride)
        self._mean, self._inverse_std = _statistics(self._vae, torch.float32)
        self.reset()

    @torch.no_grad()
    def encode(self, frames_BCTHW: Tensor) -> Tensor:
        """The latents of the next frames: 1 + 4k frames begin a stream, 4k go on."""
        self._check(frames_BCTHW)
        self._stream.admit("frames", frames_BCTHW)
        x_BCTHW = frames_BCTHW.to(self._vae.device, self._vae.dtype)
        first = 1 if self._stream.seen == 0 else 0
        chunks = [x_BCTHW[:, :, :first]] if first else []
        if x_BCTHW.shape[2] > first:
            chunks += torch.split(x_BCTHW[:, :, first:], _FRAMES_PER_LATENT, dim=2)
        z_BCTHW = torch.cat([self._encode_one(chunk) for chunk in chunks], dim=2).float()
        return (z_BCTHW - self._mean) * self._inverse_std

    def state(self) -> EncoderState:
        """Where the stream stands; it may be kept while encoding goes on."""
        return EncoderState(*self._stream.freeze())

    def restore(self, state: EncoderState) -> None:
        """Go on from a state of an encoder with the same weights, dtype and tiles."""
        self._stream.restore(state, self._vae.device, self._vae.dtype)

    def reset(self) -> None:
        """Forget the stream: the next frame is a first one."""
        self._stream = Stream(self._vae.encoder)

    def _encode_one(self, x_BCTHW: Tensor) -> Tensor:
        if patch := self._vae.config.patch_size:
            x_BCTHW = rearrange(x_BCTHW, "B C T (H q) (W r) -> B (C r q) T H W", q=patch, r=patch)
        height, width = x_BCTHW.shape[-2:]
        tiles = self._stream.map(
            self._tiling.cut(x_BCTHW),
            lambda tile, cache: self._vae.quant_conv(
                self._vae.encoder(tile, feat_cache=cache, feat_idx=[0])
            ),
        )
        mode_BCTHW, _ = self._tiling.join(tiles, height, width).chunk(2, dim=1)
        return mode_BCTHW

    def _check(self, frames_BCTHW: Tensor) -> None:
        _check_channels("frames", frames_BCTHW, 3)
        num_frames, height, width = frames_BCTHW.shape[2:]
        stride = self._vae.config.scale_factor_spatial
        if height % stride or width % stride:
            raise ValueError(
                f"frames of {height} x {width} pixels are no whole number of latents, which are "
                f"{stride} x {stride} pixels each; resize or crop them to multiples of {stride}"
            )
        first = 1 if self._stream.seen == 0 else 0
        if num_frames % _FRAMES_PER_LATENT != first:
            need = "1 + 4k frames, since its first frame is one latent" if first else "4k frames"
            raise ValueError(
                f"frames: {num_frames} of them leave a latent incomplete; "
                f"{'begin' if first else 'continue'} the stream with {need}"
            )


def to_uint8(frames_BCTHW: Tensor) -> Tensor:
    """One sample's frames in [-1, 1] as T H W C bytes, rounded half to even.

    The steps of diffusers: to [0, 1] in the frames' own dtype, then times 255 in float32.
    """
    if frames_BCTHW.shape[0] != 1:
        raise ValueError(
            f"frames hold {frames_BCTHW.shape[0]} samples and one is shown at a time; "
            "pass frames[i : i + 1]"
        )
    unit_CTHW = (frames_BCTHW[0] * 0.5 + 0.5).clamp(0, 1)
    bytes_CTHW = (unit_CTHW.float() * 255).round().to(torch.uint8)
    return rearrange(bytes_CTHW, "C T H W -> T H W C").contiguous()


def _cells(vae: Any) -> tuple[int, int]:
    """Pixels a side of a latent, and of what the decoder makes and the encoder reads."""
    return vae.config.scale_factor_spatial, vae.config.patch_size or 1


def _statistics(vae: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and inverse standard deviation; the inverse, because diffusers rounds that one."""
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    return mean.to(vae.device, dtype), 1.0 / std.to(vae.device, dtype)


def _check_channels(what: str, x_BCTHW: Tensor, channels: int) -> None:
    if x_BCTHW.ndim != 5 or x_BCTHW.shape[1] != channels:
        raise ValueError(
            f"{what} of shape {tuple(x_BCTHW.shape)} cannot pass this VAE; give batch, "
            f"{channels} channels, time, height, width"
        )
