import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance
from hypothesis import given, settings
from hypothesis import strategies as st
from schedules import reference
from torch import Tensor, nn

from longreel.configs.schema import SamplingConfig
from longreel.pipeline.guidance import GuidancePlan, guide, plan_guidance, predict
from longreel.pipeline.levels import make_levels

LATENTS = (1, 4, 3, 6, 8)
TEXT = (1, 5, 12)


class TinyModel(nn.Module):
    """Latents that read the text: convolution, then cross-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv3d(4, 12, 3, padding=1)
        self.read = nn.MultiheadAttention(12, 2, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, latents: Tensor, text: Tensor) -> Tensor:
        tokens = self.mix(latents).flatten(2).transpose(1, 2)
        tokens = tokens + self.read(tokens, text, text, need_weights=False)[0]
        return self.head(torch.nn.functional.gelu(tokens)).transpose(1, 2).reshape(latents.shape)


def test_guidance_is_that_of_diffusers_bit_for_bit():
    guider = ClassifierFreeGuidance()

    for scale in (1.001, 3.5, 5.0, 6.0, 30.0):
        cond, uncond = torch.randn(LATENTS), torch.randn(LATENTS)
        guider.guidance_scale = scale
        assert torch.equal(guide(cond, uncond, scale), guider.forward(cond, uncond).pred)


def test_guiding_bfloat16_velocities_loses_nothing_to_bfloat16():
    cond = torch.randn(LATENTS).bfloat16()
    uncond = (cond.float() + 0.02 * torch.randn(LATENTS)).bfloat16()

    guided = guide(cond, uncond, 5.0)

    exact = uncond.double() + 5.0 * (cond.double() - uncond.double())
    assert guided.dtype == torch.float32
    torch.testing.assert_close(guided.double(), exact, rtol=1e-6, atol=1e-6)


@torch.inference_mode()
def test_one_batch_of_two_gives_what_two_forwards_give():
    model = TinyModel()
    latents, cond, uncond = torch.randn(LATENTS), torch.randn(TEXT), torch.randn(TEXT)

    predicted = {
        mode: predict(model, latents, cond, uncond, GuidancePlan((5.0,), mode), 0)
        for mode in ("sequential", "batched")
    }

    expected = model(latents, uncond) + 5.0 * (model(latents, cond) - model(latents, uncond))
    assert torch.equal(predicted["sequential"], expected)
    # a batch of two may sum in another order: float32 rounding, times the scale
    torch.testing.assert_close(predicted["batched"], expected, rtol=1e-5, atol=5e-6)


@given(
    mode=st.sampled_from(["sequential", "batched"]),
    scales=st.lists(st.none() | st.floats(1.5, 10.0), min_size=1, max_size=5),
)
@settings(deadline=None, max_examples=40)
def test_the_unconditional_branch_runs_at_guided_steps_and_at_no_other(mode, scales):
    plan = GuidancePlan(tuple(scales), mode)
    samples = 0

    def linear(latents: Tensor, text: Tensor) -> Tensor:
        nonlocal samples
        samples += len(latents)
        return latents * text.mean(dim=(1, 2))[:, None, None, None, None]

    latents, cond, uncond = torch.ones(LATENTS), torch.full(TEXT, 2.0), torch.full(TEXT, 0.5)
    negative = uncond if plan.guided else None
    for step, scale in enumerate(scales):
        velocity = predict(linear, latents, cond, negative, plan, step)
        expected = 2.0 if scale is None else 0.5 + scale * (2.0 - 0.5)
        torch.testing.assert_close(velocity, torch.full(LATENTS, expected))

    assert samples == sum(1 if scale is None else 2 for scale in scales)


@pytest.mark.parametrize(
    ("sampling", "guided"),
    [
        (SamplingConfig(guidance=5.0), True),
        (SamplingConfig(guidance=5.0, guidance_mode="none"), False),
        (SamplingConfig(guidance=1.0), False),
        (SamplingConfig(guidance=0.0), False),
    ],
)
def test_guidance_is_on_above_one_unless_it_is_turned_off(sampling, guided):
    plan = plan_guidance(sampling, make_levels("unipc2", 8, 5.0))

    assert plan.guided is guided
    assert plan.scales == ((5.0,) * 8 if guided else (None,) * 8)


def test_an_interval_guides_the_levels_inside_it_ends_included():
    levels = make_levels("unipc2", 20, 5.0)
    ends = levels.sigmas[3], levels.sigmas[12]
    sampling = SamplingConfig(guidance=4.0, guidance_from=ends[0], guidance_to=ends[1])

    plan = plan_guidance(sampling, levels)

    assert plan.scales == (*[None] * 3, *[4.0] * 10, *[None] * 7)


@pytest.mark.parametrize("solver", ["unipc2", "euler", "dpm++2m"])
def test_each_expert_is_guided_with_its_own_scale(solver):
    timesteps = reference(solver, 40, 12.0).timesteps
    sampling = SamplingConfig(guidance=4.0, guidance_low=3.0)

    plan = plan_guidance(sampling, make_levels(solver, 40, 12.0), boundary=0.875)

    assert set(plan.scales) == {4.0, 3.0}
    assert list(plan.scales) == torch.where(timesteps >= 875, 4.0, 3.0).tolist()


def test_without_a_scale_of_its_own_the_low_noise_expert_takes_the_common_one():
    plan = plan_guidance(SamplingConfig(guidance=4.0), make_levels("unipc2", 40, 12.0), 0.875)

    assert set(plan.scales) == {4.0}
