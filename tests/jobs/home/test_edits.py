"""A finished render goes on, or is made anew in its midst: the rest stays, byte for byte."""

import numpy as np
import pytest
from tiny_blocks import ARCHS, POLICIES, overrides

from longreel.jobs.home.edits import extend, redo
from longreel.jobs.home.home import Home
from longreel.jobs.home.record import RenderRun
from longreel.jobs.render import plan_render
from longreel.models import arch as archs

FRAMES = 65


@pytest.fixture(autouse=True)
def _arch(monkeypatch):
    for name, arch in ARCHS.items():
        monkeypatch.setitem(archs.ARCHS, name, arch)


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


def plan(policy="dualparal-grouped", *more, frames=FRAMES, **request):
    settings = overrides(policy, "model.device=cpu", "checkpoint.every_s=0", *more)
    return plan_render("a cat", frames=frames, seed=3, overrides=settings, **request)


def made(home, *request, **more):
    render = home.create(plan(*request, **more))
    assert RenderRun(render).run().state == "done"
    return render


def digests(render):
    return [segment.digest for segment in render.segments()]


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "whole"])
def test_first(home, policy):
    render = made(home, policy)
    before = digests(render)
    old = np.stack(list(render.frames()))
    extend(render, 24)
    assert RenderRun(render).run().state == "done"
    assert digests(render)[: len(before)] == before
    assert len(list(render.frames())) == FRAMES + 24
    old = np.stack(list(render.frames()))
    edit = redo(render, 30, 40)
    print(edit)
    assert digests(render)[: len(before)] == before
    assert RenderRun(render).run().state == "done"
    new = np.stack(list(render.frames()))
    assert np.array_equal(new[: edit.first], old[: edit.first])
    assert np.array_equal(new[edit.stop :], old[edit.stop :])
    assert (new != old).any(axis=(1, 2, 3))[edit.first : edit.stop - 1].all()
