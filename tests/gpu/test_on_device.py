"""What is true on the CPU, again on a CUDA device: float32 without TF32, so sums alone differ."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_vae
import torch
from tiny_wan import T2V, TEXT_DIM, diffusers_model, our_model, run
from torch.nn.attention import SDPBackend, sdpa_kernel

import longreel
from longreel.kernels.attention import attend, attend_dense, attend_reference
from longreel.kernels.attention_layout import launch_options
from longreel.kernels.attention_triton import INTERPRETED, attend_lists_triton
from longreel.kernels.blocks import Blocks, even_starts
from longreel.kernels.norm import (
    affine_norm,
    gated_residual,
    gated_residual_reference,
    norm_modulate,
    norm_modulate_reference,
    rms_norm,
)
from longreel.kernels.pooled import pooled
from longreel.kernels.rope import rms_norm_rotate, rotary_table, rotate
from longreel.kernels.tiles import Window
from longreel.models.vae import StreamingDecoder
from longreel.models.wan import cast
from longreel.pipeline.noise import window_noise

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")
BF16_ROUNDING = 2**-8  # of a value, at most


@pytest.fixture(autouse=True)
def _full_float32():
    """Convolutions would use TF32, which keeps 10 bits of a factor."""
    convolutions = torch.backends.cudnn.conv
    before, convolutions.fp32_precision = convolutions.fp32_precision, "ieee"
    yield
    convolutions.fp32_precision = before


def _inputs():
    t = torch.tensor([[0.0, 417.0, 988.0]])
    return torch.randn(1, 16, 3, 6, 4), t, torch.randn(1, 7, TEXT_DIM)


def test_the_dit_on_the_device_equals_that_on_the_cpu():
    model = our_model(T2V, diffusers_model(T2V))
    latents, t, text = _inputs()
    expected = run(model, latents, t, text)
    model.to(CUDA)
    ours = run(model, latents.to(CUDA), t, text.to(CUDA)).cpu()
    # float32 in two orders: 1e-6 between two CPU implementations (test_wan), ten times that here
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_in_bfloat16_we_are_as_near_to_float32_as_diffusers_is():
    reference = diffusers_model(T2V)
    latents, _, text = _inputs()
    t = torch.tensor([417.0])
    exact = reference(latents, t, text, return_dict=False)[0]
    ours = cast(our_model(T2V, reference), torch.bfloat16).to(CUDA)
    for name, parameter in reference.named_parameters():
        if not any(part in name for part in reference._keep_in_fp32_modules):
            parameter.data = parameter.data.bfloat16()
    reference.to(CUDA)
    latents, text = latents.to(CUDA, torch.bfloat16), text.to(CUDA, torch.bfloat16)
    theirs = reference(latents, t.to(CUDA), text, return_dict=False)[0]

    def error(velocity):
        return (velocity.float().cpu() - exact).square().mean().sqrt().item()

    # the same roundings but for order: half as much again would be another kind of arithmetic
    assert error(run(ours, latents, t[:, None], text)) <= 1.5 * error(theirs)


@pytest.mark.parametrize(("queries", "keys"), [(777, 777), (1560, 512), (64, 1)])
def test_attention_equals_its_definition(queries, keys):
    q, k, v = (
        torch.randn(2, tokens, 3, 128, device=CUDA, dtype=torch.bfloat16)
        for tokens in (queries, keys, keys)
    )
    expected, _ = attend_reference(q.double(), k.double(), v.double())
    # weights are rounded once before they meet the values, and so is the result
    largest = BF16_ROUNDING * v.abs().max().item()
    torch.testing.assert_close(
        attend_dense(q, k, v).double(), expected, atol=largest, rtol=BF16_ROUNDING
    )


def test_attention_in_bfloat16_is_cudnns():
    q, k, v = (torch.randn(1, 1040, 4, 128, device=CUDA, dtype=torch.bfloat16) for _ in range(3))
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        expected = torch.nn.functional.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        ).transpose(1, 2)
    assert torch.equal(attend_dense(q, k, v), expected)


def _lists(queries, keys, heads, share=0.4, tile=120):
    q_starts, k_starts = even_starts(queries, tile), even_starts(keys, tile)
    mask = torch.rand(2, heads, len(q_starts) - 1, len(k_starts) - 1) < share
    mask[0, 0, 0] = False
    return Blocks.from_mask(mask, q_starts, k_starts).to(CUDA)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("queries", "keys"), [(777, 777), (240, 1560)])
def test_attention_over_lists_equals_its_definition(queries, keys, dtype):
    q, k, v = (
        torch.randn(2, tokens, 3, 128, device=CUDA, dtype=dtype) for tokens in (queries, keys, keys)
    )
    blocks = _lists(queries, keys, 3)
    expected, expected_lse = attend_reference(q.double(), k.double(), v.double(), blocks)
    rounding = BF16_ROUNDING if dtype == torch.bfloat16 else 1e-6
    largest = rounding * v.abs().max().item() + 1e-5
    out, lse = attend(q, k, v, blocks)
    torch.testing.assert_close(out.double(), expected, atol=largest, rtol=rounding)
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-3, rtol=0.0)
    out, lse = attend(q, k, v, blocks.complement(), (out, lse))
    dense, _ = attend_reference(q.double(), k.double(), v.double())
    torch.testing.assert_close(out.double(), dense, atol=3 * largest, rtol=2 * rounding)


@pytest.mark.parametrize("tile", [120, 128])
@pytest.mark.parametrize("even", [False, True], ids=["uneven", "even"])
@pytest.mark.parametrize(
    "layout",
    [
        {"BLOCK_N": 128, "num_warps": 8, "num_stages": 3, "DESCRIPTORS": True},
        {"BLOCK_N": 64, "num_warps": 4, "num_stages": 2, "DESCRIPTORS": True},
        {"BLOCK_N": 64, "num_warps": 8, "num_stages": 3, "DESCRIPTORS": False},
    ],
    ids=["descriptors", "halves", "pointers"],
)
def test_every_layout_of_the_kernel_computes_the_same(layout, even, tile):
    assert not INTERPRETED
    q, k, v = (torch.randn(2, 777, 3, 128, device=CUDA, dtype=torch.bfloat16) for _ in range(3))
    blocks = replace(_lists(777, 777, 3, tile=tile), even=even)
    options = launch_options(tile, tile, 128) | layout
    out, lse = attend_lists_triton(q, k, v, blocks, options=options)
    expected, expected_lse = attend_reference(q.double(), k.double(), v.double(), blocks)
    largest = BF16_ROUNDING * v.abs().max().item() + 1e-5
    torch.testing.assert_close(out.double(), expected, atol=largest, rtol=BF16_ROUNDING)
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-3, rtol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dense_attention_says_its_log_sum_exp(dtype):
    q, k, v = (torch.randn(2, 333, 3, 128, device=CUDA, dtype=dtype) for _ in range(3))
    _, lse = attend(q, k, v)
    _, expected = attend_reference(q.double(), k.double(), v.double())
    torch.testing.assert_close(lse.double(), expected, atol=1e-3, rtol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fused_kernels_equal_their_definitions(dtype):
    x, y = (torch.randn(2, 630, 1536, device=CUDA, dtype=dtype) for _ in range(2))
    scale, shift = (torch.randn(4, 1536, device=CUDA) for _ in range(2))
    index = torch.randint(4, (2, 21), device=CUDA)
    # both round nearly the same sum, so to the same number or to its neighbour
    close = {"atol": 1e-5, "rtol": 2 * BF16_ROUNDING if dtype == torch.bfloat16 else 1e-5}
    with torch.inference_mode():
        ours = norm_modulate(x, scale, shift, index, 1e-6)
        expected = norm_modulate_reference(x, scale, shift, index, 1e-6)
        torch.testing.assert_close(ours, expected, **close)
        ours, expected = (
            op(x, y, scale, index) for op in (gated_residual, gated_residual_reference)
        )
        torch.testing.assert_close(ours, expected, **close)
        affine = torch.nn.LayerNorm(1536, device=CUDA, dtype=dtype)
        torch.nn.init.normal_(affine.weight)
        torch.nn.init.normal_(affine.bias)
        exact = torch.nn.functional.layer_norm(
            x.float(), (1536,), affine.weight.float(), affine.bias.float(), affine.eps
        )
        torch.testing.assert_close(affine_norm(x, affine).float(), exact, **close)
        norm = torch.nn.RMSNorm(1536, 1e-6, device=CUDA, dtype=dtype)
        table = rotary_table(range(21), 5, 6, (44, 42, 42), CUDA)
        ours = rms_norm_rotate(x, norm, table, 12)
        exact = rotate(rms_norm(x.float(), norm.float()).unflatten(-1, (12, -1)), table)
        rounding = BF16_ROUNDING * exact.abs().max().item() if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(ours.float(), exact, atol=rounding, rtol=0.0)


@pytest.mark.parametrize("mass", [None, 0.6])
@pytest.mark.parametrize("order", ["tiles", "raster"])  # of 120, and of 128 with a shorter last
def test_lists_by_score_are_those_of_the_definition(order, mass):
    window = Window(tuple(range(6)), (), 30, 52, order, False, 128)
    q, k = (torch.randn(1, 6 * 30 * 52, 3, 128) for _ in range(2))
    ours = pooled(q.to(CUDA), k.to(CUDA), window, 0.3, mass)
    exact = pooled(q, k, window, 0.3, mass)
    # sums in another order: a tile at the very edge of a list may be in or out
    assert (ours.mask().cpu() != exact.mask()).float().mean() < 1e-3


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_decoding_one_latent_at_a_time_equals_decoding_all(kind):
    vae = tiny_vae.random_vae(tiny_vae.ARCHS[kind], seed=3, device=CUDA, dtype=torch.float32)
    z_BCTHW = torch.randn(1, vae.config.z_dim, 4, 6, 4, device=CUDA)
    decoder = StreamingDecoder(vae)
    frames = torch.cat([decoder.decode(z) for z in z_BCTHW.split(1, dim=2)], dim=2)
    with CUDA:  # where the VAE's statistics are made
        expected = tiny_vae.decode_at_once(vae, z_BCTHW)
    # all at once the first convolution sees every latent, and may sum in another order
    torch.testing.assert_close(frames, expected, atol=1e-5, rtol=0.0)


def _noise(device, step):
    noise_BCTHW = window_noise(11, 0, 3, (16, 8, 12), step)
    return noise_BCTHW.to(device).cpu()


@pytest.mark.parametrize("step", [None, 2])
def test_noise_has_the_bits_of_the_cpu(step):
    assert torch.equal(_noise(CUDA, step), _noise(torch.device("cpu"), step))


def _frames(device):
    overrides = [f"model.device={device}", "model.text_cache="]
    chunks = longreel.stream("a red circle drifts to the right", frames=9, overrides=overrides)
    return np.concatenate([chunk.frames for chunk in chunks]).astype(int)


def test_a_whole_render_equals_that_of_the_cpu():
    on_cpu = _frames("cpu")
    assert on_cpu.std() > 5  # pictures, not one grey
    # eight steps of guidance 5 multiply float32's last bits; a grey level is 1 / 255
    assert np.abs(_frames("cuda") - on_cpu).max() <= 2
