import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from schedules import MULTISTEP, in_double, reference, velocity

from longreel.configs.schema import SOLVERS
from longreel.pipeline.levels import Levels, make_levels
from longreel.pipeline.solver import SolverState, make_solver

SHAPE = (1, 4, 3, 5, 7)
FEW_STEPS = (1000, 750, 500, 250)


@pytest.mark.parametrize("shift", [3.0, 5.0, 12.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 14, 15, 20, 50])
@pytest.mark.parametrize("name", ["euler", *MULTISTEP])
def test_a_trajectory_is_that_of_the_published_scheduler(name, steps, shift):
    """Float64 on both sides: 1e-12 is accumulated rounding, far inside the 1e-6 promised."""
    scheduler = reference(name, steps, shift)
    levels = make_levels(name, steps, shift)
    solver = make_solver(name, levels)
    expected = torch.randn(SHAPE, dtype=torch.float64)
    sample, state = expected, SolverState.empty()

    with in_double(scheduler):
        for k, timestep in enumerate(scheduler.timesteps):
            # each side asks the model at its own sample, so a difference would feed on itself
            expected = scheduler.step(velocity(expected, float(timestep)), timestep, expected)[0]
            sample, state = solver.step(k, sample, velocity(sample, levels.timesteps[k]), state)
            torch.testing.assert_close(sample, expected, rtol=0.0, atol=1e-12)

    assert state == SolverState.empty()


@pytest.mark.parametrize("shift", [3.0, 5.0, 12.0])
@pytest.mark.parametrize("name", ["euler", *MULTISTEP])
def test_in_float32_a_trajectory_differs_from_the_published_one_by_rounding_alone(name, shift):
    scheduler = reference(name, 20, shift)
    levels = make_levels(name, 20, shift)
    solver = make_solver(name, levels)
    expected = torch.randn(SHAPE)
    # 20 steps on either side, each rounded a few times at the largest value's unit (eps = 1.2e-7);
    # the published scheduler is itself 1e-6 off its own formulas in float64
    allowed = 1e-6 * expected.abs().max().item()
    sample, state = expected, SolverState.empty()

    for k, timestep in enumerate(scheduler.timesteps):
        model = velocity(expected, float(timestep))
        expected = scheduler.step(model, timestep, expected)[0]
        sample, state = solver.step(k, sample, model, state)
        torch.testing.assert_close(sample, expected, rtol=0.0, atol=allowed)


def test_renoise_is_the_stochastic_step_of_the_published_scheduler():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0, stochastic_sampling=True)
    scheduler.set_timesteps(sigmas=[step / 1000 for step in FEW_STEPS])
    levels = make_levels("renoise", 4, 5.0, FEW_STEPS)
    solver = make_solver("renoise", levels)
    expected = sample = torch.randn(SHAPE)
    state = SolverState.empty()

    for k, timestep in enumerate(scheduler.timesteps):
        model = velocity(expected, float(timestep))
        generator = torch.Generator().manual_seed(k)
        expected = scheduler.step(model, timestep, expected, generator=generator)[0]
        noise = partial(_noise, k) if k < 3 else None  # the last step draws none
        sample, state = solver.step(k, sample, model, state, noise)
        torch.testing.assert_close(sample, expected, rtol=0.0, atol=1e-6)


# Warm-up limits DPM-Solver++ 3M: its first step is of order 1, whatever follows.
@pytest.mark.parametrize(
    ("name", "order"),
    [("euler", 1), ("dpm++2m", 2), ("dpm++3m", 2), ("unipc2", 3), ("unipc3", 3)],
)
def test_halving_the_steps_shrinks_the_error_by_the_order_of_the_solver(name, order):
    errors = [_error_on_gaussian_data(name, steps) for steps in (40, 80, 160)]

    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) > order - 0.1


def test_a_higher_order_is_closer_at_the_same_number_of_steps():
    errors = [
        _error_on_gaussian_data(name, 40)
        for name in ("euler", "dpm++2m", "dpm++3m", "unipc2", "unipc3")
    ]

    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 500


@given(inner=st.sets(st.integers(1, 999), min_size=1, max_size=12), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
@pytest.mark.parametrize("name", ["euler", *MULTISTEP])
def test_on_any_ladder_noise_over_a_fixed_picture_is_taken_off_exactly(name, inner, seed):
    """A model that always sees the same picture moves every sample on a straight line."""
    sigmas = (*(level / 1000 for level in sorted(inner, reverse=True)), 0.0)
    solver = make_solver(name, Levels(sigmas, tuple(1000 * sigma for sigma in sigmas[:-1])))
    generator = torch.Generator().manual_seed(seed)
    picture, noise = torch.randn(2, 1, 1, 2, 3, 3, dtype=torch.float64, generator=generator)
    sample, state = (1 - sigmas[0]) * picture + sigmas[0] * noise, SolverState.empty()

    for k, end in enumerate(sigmas[1:]):
        model = (sample - picture) / sigmas[k]
        sample, state = solver.step(k, sample, model, state)
        # weights of predictions that cancel grow where neighbouring levels differ a hundredfold
        torch.testing.assert_close(sample, (1 - end) * picture + end * noise, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("stop", [1, 3, 7])
def test_sample_and_state_are_all_it_takes_to_go_on_bit_for_bit(name, stop, tmp_path):
    levels = _levels(name, 8)
    whole, _ = _run(name, levels, torch.randn(SHAPE), SolverState.empty(), range(8))

    torch.manual_seed(0)
    sample, state = _run(name, levels, torch.randn(SHAPE), SolverState.empty(), range(stop))
    torch.save((sample, state.tensors), tmp_path / "state.pt")
    sample, tensors = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed, _ = _run(name, levels, sample, SolverState(tensors), range(stop, 8))

    assert torch.equal(resumed, whole)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_step_changes_nothing_it_was_given(name):
    levels = _levels(name, 8)
    sample, state = _run(name, levels, torch.randn(SHAPE), SolverState.empty(), range(4))
    given = [sample, velocity(sample, 500.0), torch.randn(SHAPE), *state.tensors]
    copies = [tensor.clone() for tensor in given]

    make_solver(name, levels).step(4, given[0], given[1], state, lambda: given[2])

    assert all(torch.equal(tensor, copy) for tensor, copy in zip(given, copies, strict=True))


@pytest.mark.parametrize("name", MULTISTEP)
def test_a_block_whose_history_was_cut_goes_on_as_the_published_scheduler_starts(name):
    levels = make_levels(name, 20, 5.0)
    cut = 6
    sample = torch.randn(SHAPE, dtype=torch.float64)
    scheduler = reference(name, 20, 5.0)
    scheduler.set_begin_index(cut)  # a scheduler that never saw the first steps

    ours, _ = _run(name, levels, sample, SolverState.empty(), range(cut, 20))

    with in_double(scheduler):
        for timestep in scheduler.timesteps[cut:]:
            sample = scheduler.step(velocity(sample, float(timestep)), timestep, sample)[0]
    torch.testing.assert_close(ours, sample, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize(("name", "kept"), [("unipc3", 2), ("dpm++3m", 1)])
def test_a_shorter_memory_gives_the_solver_of_lower_order(name, kept):
    """Two predictions known out of three: the next step is the one UniPC-2 or 2M would take."""
    lower = {"unipc3": "unipc2", "dpm++3m": "dpm++2m"}[name]
    levels = make_levels(name, 20, 5.0)
    sample, state = _run(name, levels, torch.randn(SHAPE), SolverState.empty(), range(6))
    shortened = SolverState(state.tensors[:kept])

    ours, _ = _run(name, levels, sample, shortened, range(6, 7))
    expected, _ = _run(lower, levels, sample, shortened, range(6, 7))

    assert torch.equal(ours, expected)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_last_step_lands_on_the_prediction_of_the_clean_sample(name):
    levels = _levels(name, 8)
    sample, state = _run(name, levels, torch.randn(SHAPE), SolverState.empty(), range(7))
    model = velocity(sample, levels.timesteps[7])

    final, _ = make_solver(name, levels).step(7, sample, model, state)

    assert torch.isfinite(final).all()
    torch.testing.assert_close(final, sample - levels.sigmas[7] * model, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_sample_stays_float32_under_a_bfloat16_model(name):
    levels = _levels(name, 4)
    solver = make_solver(name, levels)
    sample, state = torch.randn(SHAPE), SolverState.empty()

    for k in range(4):
        model = velocity(sample, levels.timesteps[k]).bfloat16()
        sample, state = solver.step(k, sample, model, state, partial(_noise, k))
        assert {sample.dtype, *(tensor.dtype for tensor in state.tensors)} == {torch.float32}


def _levels(name: str, steps: int) -> Levels:
    timesteps = tuple(range(1000, 0, -1000 // steps)) if name == "renoise" else ()
    return make_levels(name, steps, 5.0, timesteps)


def _run(name, levels, sample, state, steps):
    """A fresh solver, its own model, and noise that depends on the step alone."""
    solver = make_solver(name, levels)
    for k in steps:
        model = velocity(sample, levels.timesteps[k])
        sample, state = solver.step(k, sample, model, state, partial(_noise, k))
    return sample, state


def _noise(step):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(step))


def _error_on_gaussian_data(name: str, steps: int) -> float:
    """Distance from the exact flow to data of one Gaussian, whose velocity is known in closed form.

    Evenly spaced in lambda from 0.95 to 0.05; the jump to 0 is of order 1 by design and left out.
    """
    mean, spread = 0.7, 0.4
    lambdas = torch.linspace(-3, 3, steps + 1, dtype=torch.float64)
    sigmas = (*torch.sigmoid(-lambdas).tolist(), 0.0)
    solver = make_solver(name, Levels(sigmas, tuple(1000 * sigma for sigma in sigmas[:-1])))

    def deviation(sigma: float) -> float:
        return math.sqrt((1 - sigma) ** 2 * spread**2 + sigma**2)

    start = torch.linspace(-2, 2, 5, dtype=torch.float64)
    sample, state = start, SolverState.empty()
    for k, sigma in enumerate(sigmas[:-2]):
        pull = (1 - sigma) * spread**2 / deviation(sigma) ** 2
        clean = mean + pull * (sample - (1 - sigma) * mean)
        sample, state = solver.step(k, sample, (sample - clean) / sigma, state)
    end = sigmas[-2]
    ratio = deviation(end) / deviation(sigmas[0])
    exact = (1 - end) * mean + ratio * (start - (1 - sigmas[0]) * mean)
    return (sample - exact).abs().max().item()
