import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from schedules import MULTISTEP, reference

from longreel.pipeline.levels import TRAIN_STEPS, make_levels

FEW_STEPS = (1000, 750, 500, 250)


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.0, 12.0, 16.0])
@pytest.mark.parametrize("steps", [1, 2, 4, 20, 50])
@pytest.mark.parametrize("solver", ["euler", *MULTISTEP])
def test_levels_and_timesteps_are_bit_for_bit_those_of_the_published_schedulers(
    solver, steps, shift
):
    scheduler = reference(solver, steps, shift)

    levels = make_levels(solver, steps, shift)

    assert levels.sigmas == tuple(scheduler.sigmas.tolist())
    assert levels.timesteps == tuple(map(float, scheduler.timesteps.tolist()))


@pytest.mark.parametrize("shift", [1.0, 5.0, 8.0])
def test_few_step_levels_are_the_training_levels_named_before_the_shift(shift):
    training = FlowMatchEulerDiscreteScheduler(shift=shift)  # untouched: all 1000, falling
    named = TRAIN_STEPS - torch.tensor(FEW_STEPS)

    levels = make_levels("renoise", len(FEW_STEPS), shift, FEW_STEPS)

    # theirs is rounded after each of three float32 operations, ours once: two units at most
    two_units = 2 * torch.finfo(torch.float32).eps
    expected = training.sigmas[named]
    torch.testing.assert_close(torch.tensor(levels.sigmas[:-1]), expected, rtol=two_units, atol=0.0)
    torch.testing.assert_close(
        torch.tensor(levels.timesteps), training.timesteps[named], rtol=two_units, atol=0.0
    )
    assert levels.sigmas[-1] == 0.0


def test_self_forcing_walks_down_its_published_timesteps():
    levels = make_levels("renoise", 4, 5.0, FEW_STEPS)

    # 1000 * 5 s / (1 + 4 s) for s = 1, 3/4, 1/2, 1/4
    exact = [1000.0, 937.5, 2500 / 3, 625.0]
    assert levels.timesteps == pytest.approx(exact, rel=1e-7)


def test_a_multistep_ladder_starts_below_one_so_that_its_logarithm_is_finite():
    for shift in (1.0, 5.0, 16.0):
        for solver in MULTISTEP:
            assert 0.999 <= make_levels(solver, 20, shift).sigmas[0] < 1.0


@pytest.mark.parametrize("solver", ["euler", "unipc2", "dpm++2m"])
def test_the_experts_change_where_the_published_pipeline_changes_them(solver):
    boundary = 0.875  # Wan 2.2 A14B, text to video
    levels = make_levels(solver, 40, 12.0)
    timesteps = reference(solver, 40, 12.0).timesteps

    low = [levels.low_noise(step, boundary) for step in range(levels.steps)]

    assert low == (timesteps < boundary * 1000).tolist()
    assert True in low
    assert False in low
    assert not any(levels.low_noise(step, 0.0) for step in range(levels.steps))


@pytest.mark.parametrize("solver", ["euler", *MULTISTEP])
def test_a_shift_that_squeezes_two_steps_onto_one_level_is_refused(solver):
    with pytest.raises(
        ValueError, match=r"sampling.shift=1000000000.0 .* same level.* a shift of 1 to 20"
    ):
        make_levels(solver, 20, 1e9)
