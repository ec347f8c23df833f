"""Our DiT beside diffusers': the same weights in, the same velocity out."""

import itertools

import pytest
import torch
from tiny_wan import FLF2V, I2V, SKYREELS, T2V, TEXT_DIM, diffusers_model, our_model, run

from longreel.kernels.rope import rotary_table
from longreel.models.wan import WanDiT, cast

# fp32 sums in another order: seen 1e-6, the promise is 1e-5
FP32 = {"atol": 1e-5, "rtol": 0.0}


def _inputs(arch, *, batch=2, latents=3, text=7):
    return (
        torch.randn(batch, arch.in_channels, latents, 6, 4),
        torch.randn(batch, text, TEXT_DIM),
    )


def test_text_to_video_equals_diffusers():
    reference = diffusers_model(T2V)
    latents, text = _inputs(T2V)
    t = torch.tensor([417.0, 988.0])
    expected = reference(latents, t, text, return_dict=False)[0]
    torch.testing.assert_close(
        run(our_model(T2V, reference), latents, t[:, None], text), expected, **FP32
    )


def test_one_level_for_the_whole_batch_equals_diffusers():
    reference = diffusers_model(T2V)
    latents, text = _inputs(T2V)
    t = torch.tensor([731.0, 731.0])
    expected = reference(latents, t, text, return_dict=False)[0]
    torch.testing.assert_close(
        run(our_model(T2V, reference), latents, t[:, None], text), expected, **FP32
    )


@pytest.mark.parametrize("arch", [I2V, FLF2V], ids=["first-frame", "first-and-last-frame"])
def test_image_to_video_equals_diffusers(arch):
    reference = diffusers_model(arch)
    latents, text = _inputs(arch, batch=1, text=512)  # diffusers finds image tokens by 512 words
    t = torch.tensor([250.0])
    image = torch.randn(1, arch.image_positions or 5, arch.image_dim)
    # diffusers takes first and last image as a batch of two, and joins them itself
    theirs = image.unflatten(1, (2, -1)).squeeze(0) if arch.image_positions else image
    expected = reference(latents, t, text, theirs, return_dict=False)[0]
    ours = run(our_model(arch, reference), latents, t[:, None], text, image)
    torch.testing.assert_close(ours, expected, **FP32)


def test_a_timestep_per_latent_equals_diffusers_timestep_per_token():
    reference = diffusers_model(T2V)
    latents, text = _inputs(T2V, latents=4)
    t = torch.tensor([[0.0, 600.0, 600.0, 900.0], [0.0, 100.0, 200.0, 300.0]])
    per_token = t.repeat_interleave(3 * 2, dim=1)
    expected = reference(latents, per_token, text, return_dict=False)[0]
    torch.testing.assert_close(run(our_model(T2V, reference), latents, t, text), expected, **FP32)


@pytest.mark.parametrize("fps", [16, 24])
def test_skyreels_diffusion_forcing_equals_diffusers(fps):
    reference = diffusers_model(SKYREELS, skyreels=True)
    latents, text = _inputs(SKYREELS, batch=1, latents=4)
    t = torch.tensor([[20.0, 20.0, 500.0, 999.0]])
    expected = reference(
        latents,
        t,
        text,
        enable_diffusion_forcing=True,
        fps=[0 if fps == 16 else 1],
        return_dict=False,
    )[0]
    ours = run(our_model(SKYREELS, reference), latents, t, text, fps=fps)
    torch.testing.assert_close(ours, expected, **FP32)


def test_skyreels_causal_runs_equal_diffusers_mask():
    reference = diffusers_model(T2V, skyreels=True)
    reference._set_ar_attention(2)
    latents, text = _inputs(T2V, batch=1, latents=6)
    t = torch.tensor([[100.0, 100.0, 400.0, 400.0, 900.0, 900.0]])
    expected = reference(latents, t, text, enable_diffusion_forcing=True, return_dict=False)[0]
    ours = run(our_model(T2V, reference), latents, t, text, causal_latents=2)
    torch.testing.assert_close(ours, expected, **FP32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cuts", [(1,), (2,), (1, 2)], ids=str)
@torch.no_grad()
def test_cutting_the_model_changes_no_bit(cuts, dtype):
    whole = cast(our_model(FLF2V, diffusers_model(FLF2V)), dtype)
    latents, text = _inputs(FLF2V)
    window = (
        latents,
        torch.tensor([[3.0, 500.0, 900.0]]).expand(2, -1),
        text,
        torch.randn(2, 10, 28),
    )
    expected = run(whole, *window)

    bounds = [0, *cuts, FLF2V.num_layers]
    slices = []
    for start, stop in itertools.pairwise(bounds):
        part = WanDiT(
            FLF2V,
            range(start, stop),
            with_embed=start == 0,
            with_head=stop == FLF2V.num_layers,
        )
        names = part.state_dict().keys()
        part.load_state_dict({name: whole.state_dict()[name] for name in names}, assign=True)
        slices.append((part, range(start, stop)))
    state = slices[0][0].embed(*window)
    for part, layers in slices:
        state = part.run_layers(state, layers)
    assert torch.equal(slices[-1][0].head(state), expected)


class _Cache:
    """Hands the same keys and values to a layer as it once wrote."""

    def __init__(self):
        self.kept, self.reading = {}, False

    def write(self, layer, k_BLD, v_BLD):
        if not self.reading:
            self.kept[layer] = k_BLD, v_BLD

    def read(self, layer):
        return self.kept[layer] if self.reading else None


def test_cached_keys_and_values_stand_for_the_tokens_they_were_made_of():
    """A causal pass over two runs equals a pass over the second with the first one's cache."""
    model = our_model(T2V, diffusers_model(T2V))
    latents, text = _inputs(T2V, latents=4)
    t = torch.tensor([[50.0, 50.0, 700.0, 700.0]]).expand(2, -1)
    expected = run(model, latents, t, text, causal_latents=2)[:, :, 2:]

    cache, layers = _Cache(), range(T2V.num_layers)
    model.run_layers(model.embed(latents[:, :, :2], t[:, :2], text), layers, cache)
    cache.reading = True
    state = model.embed(
        latents[:, :, 2:], t[:, 2:], text, positions=(2, 3), context_positions=(0, 1)
    )
    torch.testing.assert_close(model.head(model.run_layers(state, layers, cache)), expected, **FP32)


def test_attention_sees_only_distances_so_a_window_may_stand_anywhere():
    model = our_model(T2V, diffusers_model(T2V))
    latents, text = _inputs(T2V)
    t = torch.full((2, 1), 400.0)
    moved = run(model, latents, t, text, positions=range(1000, 1003))
    torch.testing.assert_close(moved, run(model, latents, t, text), atol=2e-5, rtol=0.0)
    assert not torch.equal(run(model, latents, t, text, positions=(0, 1, 9)), moved)


def test_a_rotary_table_equals_diffusers_at_the_last_position():
    theirs = diffusers_model(T2V).rope
    ours = rotary_table([1023], 1, 1, T2V.head_splits, torch.device("cpu"))[0]
    torch.testing.assert_close(ours.real[:4], theirs.freqs_cos[1023, 0:8:2])
    torch.testing.assert_close(ours.imag[:4], theirs.freqs_sin[1023, 0:8:2])


def test_bfloat16_is_as_near_to_float32_as_diffusers_bfloat16():
    reference = diffusers_model(T2V)
    ours = our_model(T2V, reference)
    latents, text = _inputs(T2V)
    t = torch.tensor([417.0, 988.0])
    exact = reference(latents, t, text, return_dict=False)[0]
    cast(ours, torch.bfloat16)
    kept = reference._keep_in_fp32_modules
    for name, parameter in reference.named_parameters():
        if not any(part in name for part in kept):
            parameter.data = parameter.data.to(torch.bfloat16)
    half = (latents.bfloat16(), t, text.bfloat16())
    their_error = (reference(*half, return_dict=False)[0].float() - exact).square().mean().sqrt()
    our_error = (run(ours, latents, t[:, None], text).float() - exact).square().mean().sqrt()
    assert our_error <= 1.1 * their_error  # the rest is luck in rounding
    assert our_error < 0.05 * exact.std()


def test_modulation_holds_one_row_per_level_however_many_tokens():
    model = our_model(T2V, diffusers_model(T2V))
    latents, text = _inputs(T2V, latents=5)
    state = model.embed(latents, torch.tensor([[7.0, 7.0, 8.0, 8.0, 9.0]] * 2), text)
    assert state.modulation.rows_R6D.shape == (3, 6, T2V.dim)
    assert state.modulation.index_BF.tolist() == [[0, 0, 1, 1, 2]] * 2


def test_levels_that_are_not_told_apart_are_the_same_ones():
    model = our_model(T2V, diffusers_model(T2V))
    latents, text = _inputs(T2V, latents=3)
    timesteps = torch.tensor([[7.0, 7.0, 8.0], [9.0, 8.0, 7.0]])
    states = [model.embed(latents, timesteps, text, tell_apart=apart) for apart in (True, False)]
    assert [len(state.modulation.rows_R6D) for state in states] == [3, 6]
    first, second = (model.head(model.run_layers(s, range(T2V.num_layers))) for s in states)
    # products of three rows and of six may be summed in another order
    torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-6)
