"""The ring of one window: what it asks of the model, what it gives, and when it gives up."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longreel.models.protocol import DiTState, Modulation, WindowShape
from longreel.parallel.chain import LocalChain
from longreel.parallel.stage import Stage
from longreel.pipeline.condition import Condition
from longreel.pipeline.errors import RenderError
from longreel.pipeline.guidance import GuidancePlan
from longreel.pipeline.levels import make_levels
from longreel.pipeline.schedule import BlockSchedule
from longreel.pipeline.solver import make_solver
from longreel.pipeline.stepper import Stepper
from longreel.pipeline.windows import Sampling, Windows

STEPS = 5


class StandIn:
    """A DiT that remembers what it was asked; its velocity is what it is told to be."""

    num_layers = 2

    def __init__(self, velocity=lambda x, call: 0.1 * x):
        self.velocity, self.asked = velocity, []

    def embed(self, latents, timesteps, text, image=None, **window):
        self.asked.append({"latents": latents, "timesteps": timesteps, "text": text, **window})
        shape = WindowShape(times=(), context_times=(), height=1, width=1, causal_latents=0)
        level = Modulation(embedding_RD=text, rows_R6D=text, index_BF=None)
        return DiTState(
            tokens_BLD=latents, modulation=level, text_BSD=text, image_BND=None, window=shape
        )

    def run_layers(self, state, layers, cache=None, attend_tokens=None):
        assert layers == range(self.num_layers)
        return state

    def head(self, state):
        return self.velocity(state.tokens_BLD, len(self.asked))


def window(
    *, latents=3, condition=None, negative=False, seed=4, solver="euler", mode="none", scales=None
):
    timesteps = (1000, 800, 600, 400, 200) if solver == "renoise" else ()
    text = torch.ones(1, 2, 6)
    scales = scales or (None if mode == "none" else 5.0,) * STEPS
    return Sampling(
        seed=seed,
        frame_shape=(2, 4, 6),
        schedule=BlockSchedule(size=latents, steps=STEPS, num_latents=latents, max_inflight=1),
        levels=make_levels(solver, STEPS, 3.0, timesteps),
        guidance=GuidancePlan(mode=mode, scales=scales),
        boundary=0.0,
        pool=None,
        texts={0: text},
        negative_BSD=-text if negative else None,
        condition=condition or Condition(),
        causal_latents=3,
        fps=24,
        prefix_level=0.0,
        device=torch.device("cpu"),
    )


class Recording(Stepper):
    """Keeps the latents of every step."""

    def step(self, task, velocities):
        moved = super().step(task, velocities)
        self.seen = [*getattr(self, "seen", []), moved[0].latents_BCTHW]
        return moved


def run(model, sampling, *, solver="euler"):
    """The latents after each step."""
    stepper = Recording(sampling=sampling, solver=make_solver(solver, sampling.levels))
    stage = Stage(lambda expert: model, range(StandIn.num_layers))
    for done in LocalChain([stage], Windows(sampling=sampling), stepper).run(sampling.schedule):
        assert bool(done.finished) == (done.task.number == STEPS - 1)
        yield stepper.seen[-1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("step", [1, 3, STEPS])
def test_latents_that_are_not_finite_end_the_render_at_their_step(step, bad):
    def velocity(x, call):
        y = 0.1 * x
        if call == step:
            y[0, 1, 2, 3, 4] = bad  # one value of all
        return y

    seen = 0
    steps = run(StandIn(velocity), window())
    message = rf"after step {step} of {STEPS} \(level [01]\.\d+\).*black; try model\.dtype"
    with pytest.raises(RenderError, match=message):
        for seen, _ in enumerate(steps, start=1):  # noqa: B007
            pass
    assert seen == step - 1


@pytest.mark.parametrize("solver", ["euler", "unipc2", "dpm++3m", "renoise"])
def test_every_step_yields_latents_and_is_asked_its_level(solver):
    model = StandIn()
    yielded = list(run(model, window(solver=solver), solver=solver))
    levels = make_levels(solver, STEPS, 3.0, (1000, 800, 600, 400, 200) * (solver == "renoise"))
    assert len(yielded) == STEPS
    assert [float(asked["timesteps"]) for asked in model.asked] == list(levels.timesteps)
    for before, asked in zip(yielded, model.asked[1:], strict=False):
        assert torch.equal(asked["latents"], before)
    assert {(asked["fps"], asked["causal_latents"]) for asked in model.asked} == {(24, 3)}
    assert all(latents.dtype == torch.float32 for latents in yielded)


@pytest.mark.parametrize("solver", ["euler", "renoise"])
def test_a_given_latent_stays_as_it_is_and_is_at_level_zero(solver):
    given = torch.randn(1, 2, 1, 4, 6)
    model = StandIn()
    sampling = window(condition=Condition(first_BCTHW=given), solver=solver)
    for latents in run(model, sampling, solver=solver):
        assert torch.equal(latents[:, :, :1], given)
    for asked in model.asked:
        assert torch.equal(asked["latents"][:, :, :1], given)
        level, *rest = asked["timesteps"][0].tolist()
        assert level == 0.0
        assert len(set(rest)) == 1
        assert rest[0] > 0


def test_channels_of_a_picture_are_read_and_never_denoised():
    channels = torch.randn(1, 3, 3, 4, 6)
    model = StandIn(lambda x, call: 0.1 * x[:, :2])
    latents = list(run(model, window(condition=Condition(channels_BCTHW=channels))))[-1]
    assert latents.shape == (1, 2, 3, 4, 6)
    assert all(torch.equal(asked["latents"][:, 2:], channels) for asked in model.asked)


class Proportional(StandIn):
    """Its velocity is the latents times what the prompt says."""

    def head(self, state):
        return state.tokens_BLD * state.text_BSD.mean(dim=(1, 2))[:, None, None, None, None]


@given(
    mode=st.sampled_from(["sequential", "batched"]),
    scales=st.lists(st.none() | st.floats(1.5, 10.0), min_size=STEPS, max_size=STEPS),
)
@settings(deadline=None, max_examples=40)
def test_the_unconditional_branch_runs_at_guided_steps_and_at_no_other(mode, scales):
    model, sampling = Proportional(), window(negative=True, mode=mode, scales=tuple(scales))
    sigmas, expected = sampling.levels.sigmas, sampling.noise(0)
    for k, latents in enumerate(run(model, sampling)):
        factor = 1.0 if scales[k] is None else -1.0 + scales[k] * (1.0 - -1.0)
        expected = expected + (sigmas[k + 1] - sigmas[k]) * factor * expected
        torch.testing.assert_close(latents, expected)
    samples = sum(len(asked["text"]) for asked in model.asked)
    assert samples == sum(1 if scale is None else 2 for scale in scales)


def test_guidance_in_one_batch_reads_both_prompts_and_the_same_latents():
    model = StandIn()
    list(run(model, window(negative=True, mode="batched")))
    for asked in model.asked:
        assert len(asked["latents"]) == len(asked["text"]) == 2
        assert torch.equal(*asked["latents"])
        assert not torch.equal(*asked["text"])


def test_the_noise_of_a_longer_video_begins_with_that_of_a_shorter_one():
    short, long = window(latents=3), window(latents=7)
    for step in (None, 0, 2):
        assert torch.equal(long.noise(0, step)[:, :, :3], short.noise(0, step))
    assert not torch.equal(short.noise(0), window(seed=5).noise(0))


def test_closing_the_loop_stops_the_model():
    model = StandIn()
    steps = run(model, window())
    next(steps)
    steps.close()
    assert len(model.asked) == 1
    assert list(steps) == []
