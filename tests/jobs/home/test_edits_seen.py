"""Where an edit begins and ends, the small model that is shipped draws no cut."""

import numpy as np
import pytest

from longreel.jobs.home.edits import extend, redo
from longreel.jobs.home.home import Home
from longreel.jobs.home.record import RenderRun
from longreel.jobs.render import plan_render

pytestmark = pytest.mark.slow

SETTINGS = ["sampling.steps=12", "model.device=cpu"]
PROMPT = "a red circle drifts slowly to the right over a blue background"


def test_borders_of_edits_are_steps_as_others_and_no_cuts(tmp_path):
    plan = plan_render(PROMPT, preset="shapes", frames=97, seed=1, overrides=SETTINGS)
    render = Home(tmp_path).create(plan)
    RenderRun(render).run()
    frames = made_of(render)
    usual = steps(frames).max()
    extend(render, 24)
    RenderRun(render).run()
    longer = made_of(render)
    assert np.array_equal(longer[:97], frames)
    assert steps(longer)[96] < 1.5 * usual
    edit = redo(render, 50, 60)
    RenderRun(render).run()
    redone = made_of(render)
    # what a cut would add to a step
    change = np.abs(redone - longer)[edit.first : edit.fade].mean()
    for border in (edit.first, edit.fade, edit.stop):
        before, at, after = steps(redone)[[border - 5, border - 1, border + 3]]  # into latents
        assert at < 1.5 * usual
        assert at - (before + after) / 2 < change / 2


def made_of(render):
    return np.stack(list(render.frames())).astype(np.float64)


def steps(frames):
    """How much every frame differs from the one before it."""
    return np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
