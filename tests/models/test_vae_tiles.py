"""Streaming tile by tile is diffusers' tiled result of the whole video, bit for bit."""

import pytest
import tiny_vae
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load, save

from longreel.models.vae import StreamingDecoder, StreamingEncoder
from longreel.models.vae_state import DecoderState

TILE = {"plain": 32, "residual": 64}  # four latents, so that a tile starts every three
KINDS = sorted(TILE)
# in latents; whole strides, one more, one less, a tile of one latent, one side within a tile
SIZES = [(5, 6), (4, 7), (8, 3)]


def tiled(kind: str, tile: int, dtype: torch.dtype = torch.float32) -> AutoencoderKLWan:
    """diffusers' own tiling, with a stride of three quarters of the tile."""
    vae = tiny_vae.random_vae(tiny_vae.ARCHS[kind], seed=3).to(dtype)
    vae.enable_tiling(tile, tile, tile * 3 // 4, tile * 3 // 4)
    return vae


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_tiles_of_latents_stream_to_the_frames_of_tiled_decode(kind, height, width):
    latents_BCTHW = torch.randn(1, tiny_vae.ARCHS[kind].z_dim, 3, height, width)
    decoder = StreamingDecoder(tiny_vae.VAES[kind], tile=TILE[kind])

    parts = [decoder.decode(part) for part in latents_BCTHW.split([1, 2], dim=2)]

    expected = tiny_vae.decode_at_once(tiled(kind, TILE[kind]), latents_BCTHW)
    assert torch.equal(torch.cat(parts, dim=2), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_tiles_of_frames_stream_to_the_latents_of_tiled_encode(kind, height, width):
    arch = tiny_vae.ARCHS[kind]
    size = (height * arch.space_stride, width * arch.space_stride)
    frames_BCTHW = torch.rand(1, 3, 5, *size) * 2 - 1
    encoder = StreamingEncoder(tiny_vae.VAES[kind], tile=TILE[kind])

    parts = [encoder.encode(part) for part in frames_BCTHW.split([1, 4], dim=2)]

    # to diffusers a tile's side counts what is encoded, which are patches
    vae = tiled(kind, TILE[kind] // (arch.patch or 1))
    assert torch.equal(torch.cat(parts, dim=2), tiny_vae.encode_at_once(vae, frames_BCTHW))


def test_tiles_are_blended_in_bfloat16_as_diffusers_does():
    latents_BCTHW = torch.randn(1, 16, 2, 4, 5)
    vae = tiled("plain", 32, torch.bfloat16)
    decoded = StreamingDecoder(vae, tile=32).decode(latents_BCTHW)
    assert torch.equal(decoded, tiny_vae.decode_at_once(vae, latents_BCTHW))


def test_a_tile_whose_quarter_is_no_whole_latents_shares_more():
    """Five latents: a tile starts every three."""
    latents_BCTHW = torch.randn(1, 16, 2, 6, 7)
    vae = tiny_vae.random_vae(tiny_vae.PLAIN, seed=3)
    vae.enable_tiling(40, 40, 24, 24)
    decoded = StreamingDecoder(vae, tile=40).decode(latents_BCTHW)
    assert torch.equal(decoded, tiny_vae.decode_at_once(vae, latents_BCTHW))


def test_a_frame_within_a_tile_is_not_cut():
    latents_BCTHW = torch.randn(1, 16, 2, 4, 3)
    decoder = StreamingDecoder(tiny_vae.VAES["plain"], tile=32)
    expected = tiny_vae.decode_at_once(tiny_vae.VAES["plain"], latents_BCTHW)
    assert torch.equal(decoder.decode(latents_BCTHW), expected)
    assert len(decoder.state().caches) == 1


def test_tiles_go_on_from_a_file_and_only_with_the_same_tiles():
    latents_BCTHW = torch.randn(1, 16, 3, 5, 7)
    decoder = StreamingDecoder(tiny_vae.VAES["plain"], tile=32)
    decoder.decode(latents_BCTHW[:, :, :2])
    state = DecoderState.from_tensors(load(save(decoder.state().to_tensors())))
    expected = decoder.decode(latents_BCTHW[:, :, 2:])

    restored = StreamingDecoder(tiny_vae.VAES["plain"], tile=32)
    restored.restore(state)
    assert len(state.caches) == 2 * 3
    assert torch.equal(restored.decode(latents_BCTHW[:, :, 2:]), expected)

    whole = StreamingDecoder(tiny_vae.VAES["plain"])
    whole.restore(state)
    with pytest.raises(ValueError, match=r"6 tiles, these frames have 1; set model\.vae_tile"):
        whole.decode(latents_BCTHW[:, :, 2:])


@pytest.mark.parametrize(
    ("kind", "tile", "message"),
    [
        ("plain", 36, r"model\.vae_tile=36 .* latents of 8 pixels.* set it to 32 or 40, or to 0"),
        ("plain", 24, "set it to 32 or 40"),
        ("residual", 72, r"latents of 16 pixels.* set it to 64 or 80"),
        ("plain", -32, r"model\.vae_tile=-32"),
    ],
)
def test_tiles_that_are_no_whole_latents_are_refused(kind, tile, message):
    for streaming in (StreamingDecoder, StreamingEncoder):
        with pytest.raises(ValueError, match=message):
            streaming(tiny_vae.VAES[kind], tile=tile)
