"""Streaming through the VAE is diffusers' one-shot result, bit for bit."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import tiny_vae
import torch
from diffusers.video_processor import VideoProcessor
from safetensors.torch import load, save
from torch import Tensor

from longreel.models.arch import ARCHS
from longreel.models.vae import StreamingDecoder, StreamingEncoder, to_uint8
from longreel.models.vae_build import random_vae
from longreel.models.vae_cpu import FastOnCpu
from longreel.models.vae_state import DecoderState, EncoderState, StreamState

KINDS = sorted(tiny_vae.ARCHS)
SPLITS = [[2, 1, 3], [1, 2, 1, 2]]  # over calls, in latents


def latents(kind: str, num: int, height: int = 3, width: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (1, tiny_vae.ARCHS[kind].z_dim, num, height, width)
    return torch.randn(shape, generator=generator)


def frames(kind: str, num: int, height: int = 3, width: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    stride = tiny_vae.ARCHS[kind].space_stride
    return torch.rand((1, 3, num, height * stride, width * stride), generator=generator) * 2 - 1


def in_parts(call: Callable[[Tensor], Tensor], x_BCTHW: Tensor, lengths: list[int]) -> Tensor:
    return torch.cat([call(part) for part in x_BCTHW.split(lengths, dim=2)], dim=2)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_do_not_depend_on_how_latents_are_split_over_calls(kind):
    vae, latents_BCTHW = tiny_vae.VAES[kind], latents(kind, 6)
    at_once_BCTHW = tiny_vae.decode_at_once(vae, latents_BCTHW)
    assert at_once_BCTHW.shape[2] == 4 * 6 - 3

    for lengths in SPLITS:
        frames_BCTHW = in_parts(StreamingDecoder(vae).decode, latents_BCTHW, lengths)
        assert torch.equal(frames_BCTHW, at_once_BCTHW), lengths


@pytest.mark.parametrize("kind", KINDS)
def test_latents_do_not_depend_on_how_frames_are_split_over_calls(kind):
    vae, frames_BCTHW = tiny_vae.VAES[kind], frames(kind, 4 * 6 - 3)
    at_once_BCTHW = tiny_vae.encode_at_once(vae, frames_BCTHW)
    assert at_once_BCTHW.shape[2] == 6

    for first, *rest in SPLITS:
        counts = [4 * first - 3, *(4 * length for length in rest)]
        latents_BCTHW = in_parts(StreamingEncoder(vae).encode, frames_BCTHW, counts)
        assert torch.equal(latents_BCTHW, at_once_BCTHW), counts


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_and_gray_frames_stream_to_the_latents_of_the_padded_video(kind):
    vae = tiny_vae.VAES[kind]
    image_BCTHW = frames(kind, 1)
    gray_BCTHW = torch.zeros_like(image_BCTHW).expand(-1, -1, 4, -1, -1)
    encoder = StreamingEncoder(vae)

    parts = [encoder.encode(image_BCTHW), *(encoder.encode(gray_BCTHW) for _ in range(3))]

    padded_BCTHW = torch.cat([image_BCTHW, *[gray_BCTHW] * 3], dim=2)
    assert torch.equal(torch.cat(parts, dim=2), tiny_vae.encode_at_once(vae, padded_BCTHW))


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_decoded_and_encoded_as_diffusers_does_in_bfloat16(kind):
    vae = tiny_vae.random_vae(tiny_vae.ARCHS[kind], seed=3).to(torch.bfloat16)
    latents_BCTHW, frames_BCTHW = latents(kind, 2), frames(kind, 5)

    decoded = in_parts(StreamingDecoder(vae).decode, latents_BCTHW, [1, 1])
    encoded = in_parts(StreamingEncoder(vae).encode, frames_BCTHW, [1, 4])

    assert decoded.dtype == torch.bfloat16
    assert torch.equal(decoded, tiny_vae.decode_at_once(vae, latents_BCTHW))
    assert torch.equal(encoded, tiny_vae.encode_at_once(vae, frames_BCTHW))


@pytest.mark.parametrize("kind", KINDS)
def test_frames_of_one_latent_equal_the_tiled_result(kind):
    """Under 12 latents a frame, a 1 x 1 x 1 convolution over several at once has other last bits.

    vae.decode runs that one over all latents, tiled_decode, like us, over one at a time.
    """
    vae = tiny_vae.random_vae(tiny_vae.ARCHS[kind], seed=3)
    latents_BCTHW = latents(kind, 4, height=1, width=1)
    mean, inverse_std = tiny_vae.statistics(vae, torch.float32)

    decoded = in_parts(StreamingDecoder(vae).decode, latents_BCTHW, [1, 3])

    with torch.no_grad(), FastOnCpu():
        expected = vae.tiled_decode(latents_BCTHW / inverse_std + mean).sample
    assert torch.equal(decoded, expected)
    # a last bit of the latents, carried through the decoder
    torch.testing.assert_close(
        decoded, tiny_vae.decode_at_once(vae, latents_BCTHW), rtol=0, atol=1e-5
    )


def test_two_samples_of_a_batch_are_decoded_together():
    latents_BCTHW = torch.cat([latents("plain", 2, seed=seed) for seed in (0, 1)])
    decoded = in_parts(StreamingDecoder(tiny_vae.VAES["plain"]).decode, latents_BCTHW, [1, 1])
    assert torch.equal(decoded, tiny_vae.decode_at_once(tiny_vae.VAES["plain"], latents_BCTHW))


@pytest.mark.parametrize("kind", KINDS)
def test_streams_that_share_a_vae_do_not_disturb_each_other(kind):
    vae = tiny_vae.VAES[kind]
    inputs = [latents(kind, 3, seed=seed) for seed in (0, 1)]
    decoders = [StreamingDecoder(vae) for _ in inputs]
    parts: list[list[Tensor]] = [[], []]

    for time in range(3):
        for decoder, latents_BCTHW, decoded in zip(decoders, inputs, parts, strict=True):
            decoded.append(decoder.decode(latents_BCTHW[:, :, time : time + 1]))
        vae.decode(inputs[0])  # and neither does diffusers' own cache

    for latents_BCTHW, decoded in zip(inputs, parts, strict=True):
        expected = tiny_vae.decode_at_once(vae, latents_BCTHW)
        assert torch.equal(torch.cat(decoded, dim=2), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_restored_from_a_file_goes_on_with_the_same_bits(kind):
    """From before every latent, for two more."""
    vae, parts = tiny_vae.VAES[kind], latents(kind, 5).split(1, dim=2)
    decoder, saved, decoded = StreamingDecoder(vae), [], []
    for latent_BCTHW in parts:
        saved.append(save(decoder.state().to_tensors()))
        decoded.append(decoder.decode(latent_BCTHW))

    for seen in range(4):
        restored = StreamingDecoder(vae)
        restored.restore(DecoderState.from_tensors(load(saved[seen])))

        assert restored.state().seen == seen
        for time in (seen, seen + 1):
            assert torch.equal(restored.decode(parts[time]), decoded[time])


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_restored_from_a_file_goes_on_with_the_same_bits(kind):
    vae = tiny_vae.VAES[kind]
    frames_BCTHW = frames(kind, 13)
    encoder = StreamingEncoder(vae)
    encoder.encode(frames_BCTHW[:, :, :5])
    saved = save(encoder.state().to_tensors())
    expected = encoder.encode(frames_BCTHW[:, :, 5:])

    restored = StreamingEncoder(vae)
    restored.restore(EncoderState.from_tensors(load(saved)))

    assert torch.equal(restored.encode(frames_BCTHW[:, :, 5:]), expected)


def test_a_kept_state_stays_as_it_was_while_decoding_goes_on():
    latents_BCTHW = latents("plain", 6)
    decoder = StreamingDecoder(tiny_vae.VAES["plain"])
    decoder.decode(latents_BCTHW[:, :, :2])
    state = decoder.state()
    before = {name: tensor.clone() for name, tensor in state.to_tensors().items()}

    first = decoder.decode(latents_BCTHW[:, :, 2:])
    after = state.to_tensors()
    decoder.restore(state)

    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert torch.equal(decoder.decode(latents_BCTHW[:, :, 2:]), first)


def deep(kind):
    """With as many stages and blocks a stage as are published, and narrow."""
    arch = {"shapes": ARCHS["shapes"].vae, "wan": ARCHS["wan2.1-t2v-1.3b"].vae} | tiny_vae.ARCHS
    return replace(arch[kind], base_dim=8) if kind in ("shapes", "wan") else arch[kind]


@pytest.mark.parametrize("kind", ["shapes", "wan", "residual"])
def test_a_decoder_stands_where_its_last_latents_have_left_it(kind):
    arch = deep(kind)
    vae, reach = random_vae(arch, seed=3), arch.decoder_reach
    latents = torch.randn(1, arch.z_dim, reach + 2, 1, 1)

    def state_after(count):
        decoder = StreamingDecoder(vae)
        decoder.decode(latents[:, :, -count:])
        return decoder.state().to_tensors()

    def same(state, other):
        return all(torch.equal(state[name], other[name]) for name in state if name != "seen")

    whole = state_after(reach + 2)
    assert same(state_after(reach), whole)
    assert not same(state_after(reach - 1), whole)


def test_reset_begins_another_video_of_another_size():
    vae = tiny_vae.VAES["plain"]
    decoder, encoder = StreamingDecoder(vae), StreamingEncoder(vae)
    decoder.decode(latents("plain", 2))
    encoder.encode(frames("plain", 5))
    decoder.reset()
    encoder.reset()

    latents_BCTHW, frames_BCTHW = latents("plain", 2, height=4), frames("plain", 5, width=5)
    assert torch.equal(decoder.decode(latents_BCTHW), tiny_vae.decode_at_once(vae, latents_BCTHW))
    assert torch.equal(encoder.encode(frames_BCTHW), tiny_vae.encode_at_once(vae, frames_BCTHW))


@pytest.mark.parametrize("kind", KINDS)
def test_memory_does_not_grow_with_the_length_of_the_video(kind):
    vae = tiny_vae.VAES[kind]
    decoder, encoder = StreamingDecoder(vae), StreamingEncoder(vae)
    sizes: list[tuple[object, ...]] = []
    for time in range(6):
        decoder.decode(latents(kind, 1, seed=time))
        encoder.encode(frames(kind, 4 if time else 1, seed=time))
        sizes.append((measure(decoder.state()), measure(encoder.state())))

    assert sizes[2:] == 4 * [sizes[2]]


def measure(state: StreamState) -> tuple[int, int, int, int]:
    """Rows, entries, tensors, and bytes of storage: a small view would hold on to a large one."""
    entries = [entry for row in state.caches for entry in row]
    tensors = [entry for entry in entries if isinstance(entry, Tensor)]
    num_bytes = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    return len(state.caches), len(entries), len(tensors), num_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_those_diffusers_makes_pictures_of(dtype):
    frames_BCTHW = (torch.rand(1, 3, 2, 16, 24) * 2.4 - 1.2).to(dtype)
    frames_BCTHW[0, 0, 0, 0, :3] = torch.tensor([-1.0, 1.0, 0.0])  # 127.5 goes to the even 128

    pictures = VideoProcessor().postprocess_video(frames_BCTHW, output_type="pil")[0]

    expected = np.stack([np.asarray(picture) for picture in pictures])
    assert to_uint8(frames_BCTHW).dtype == torch.uint8
    assert np.array_equal(to_uint8(frames_BCTHW).numpy(), expected)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            torch.zeros(1, 15, 1, 3, 4),
            r"\(1, 15, 1, 3, 4\) cannot pass this VAE; give batch, 16 ch",
        ),
        (torch.zeros(16, 1, 3, 4), "give batch, 16 channels, time, height, width"),
        (torch.zeros(1, 16, 0, 3, 4), "are empty"),
        (torch.zeros(1, 16, 1, 4, 4), r"\(1, 16, 4, 4\) do not continue .*\(1, 16, 3, 4\).*reset"),
        (torch.zeros(2, 16, 1, 3, 4), r"\(2, 16, 3, 4\) do not continue"),
    ],
)
def test_latents_that_do_not_fit_are_refused_and_the_stream_goes_on(bad, message):
    latents_BCTHW = latents("plain", 3)
    decoder = StreamingDecoder(tiny_vae.VAES["plain"])
    first = decoder.decode(latents_BCTHW[:, :, :2])

    with pytest.raises(ValueError, match=message):
        decoder.decode(bad)

    rest = decoder.decode(latents_BCTHW[:, :, 2:])
    expected = tiny_vae.decode_at_once(tiny_vae.VAES["plain"], latents_BCTHW)
    assert torch.equal(torch.cat([first, rest], dim=2), expected)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(1, 4, 4, 24, 32), "give batch, 3 channels"),
        (torch.zeros(1, 3, 4, 24, 36), "24 x 36 pixels .* multiples of 8"),
        (
            torch.zeros(1, 3, 3, 24, 32),
            "3 of them leave a latent incomplete; continue .* 4k frames",
        ),
        (torch.zeros(1, 3, 0, 24, 32), "are empty"),
        (torch.zeros(1, 3, 4, 16, 32), r"\(1, 3, 16, 32\) do not continue .* \(1, 3, 24, 32\)"),
    ],
)
def test_frames_that_do_not_fit_are_refused_and_the_stream_goes_on(bad, message):
    frames_BCTHW = frames("plain", 9)
    encoder = StreamingEncoder(tiny_vae.VAES["plain"])
    first = encoder.encode(frames_BCTHW[:, :, :5])

    with pytest.raises(ValueError, match=message):
        encoder.encode(bad)

    rest = encoder.encode(frames_BCTHW[:, :, 5:])
    expected = tiny_vae.encode_at_once(tiny_vae.VAES["plain"], frames_BCTHW)
    assert torch.equal(torch.cat([first, rest], dim=2), expected)


def test_a_stream_of_frames_begins_with_one_that_is_a_latent_of_its_own():
    with pytest.raises(ValueError, match=r"begin the stream with 1 \+ 4k frames"):
        StreamingEncoder(tiny_vae.VAES["plain"]).encode(frames("plain", 4))


def test_a_state_of_another_model_dtype_or_with_a_tensor_lost_is_refused():
    decoder = StreamingDecoder(tiny_vae.VAES["plain"])
    decoder.decode(latents("plain", 2))
    state = decoder.state()

    with pytest.raises(ValueError, match="restore it with the model"):
        StreamingDecoder(tiny_vae.VAES["residual"]).restore(state)
    half = tiny_vae.random_vae(tiny_vae.PLAIN, seed=3).to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"torch\.float32.*torch\.bfloat16.*model\.vae_dtype"):
        StreamingDecoder(half).restore(state)

    tensors = state.to_tensors()
    del tensors["tile0.conv1"]
    with pytest.raises(ValueError, match=r"lacks tile0\.conv1"):
        DecoderState.from_tensors(tensors)


def test_only_one_sample_is_turned_into_bytes():
    with pytest.raises(ValueError, match="2 samples"):
        to_uint8(torch.zeros(2, 3, 1, 8, 8))
