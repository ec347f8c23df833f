import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance
from schedules import reference

from longreel.configs.schema import SamplingConfig
from longreel.pipeline.guidance import guide, plan_guidance
from longreel.pipeline.levels import make_levels

LATENTS = (1, 4, 3, 6, 8)


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
