"""Whatever is done to a render's processes and files, its video is that of an undisturbed one."""

import logging
import os

import pytest
from chaos_local import contents, count_points, draw, leftovers, suffer
from tiny_blocks import ARCHS, overrides

from longreel.jobs.home.home import Home
from longreel.jobs.home.record import RenderRun
from longreel.jobs.render import plan_render
from longreel.models import arch as archs

POLICIES = ("dualparal-grouped", "forcing", "causal")
FEW, MANY = range(12), range(12, 188)


@pytest.fixture(scope="module", autouse=True)
def _arch():
    with pytest.MonkeyPatch.context() as patch:
        for name, arch in ARCHS.items():
            patch.setitem(archs.ARCHS, name, arch)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return Home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def truths(home):
    """Of every policy the segments of an undisturbed render, and how many points it passes."""
    found = {}
    for policy in POLICIES:
        render = home.create(plan(policy))
        points = count_points(render)
        found[policy] = [(s.first, s.digest) for s in render.segments()], points
    return found


def plan(policy):
    settings = overrides(policy, "model.device=cpu", "checkpoint.every_s=0.02")
    return plan_render("a cat", frames=49, seed=3, overrides=settings)


def disturbed(home, truths, seed):
    policy = POLICIES[seed % len(POLICIES)]
    truth, points = truths[policy]
    render = home.create(plan(policy))
    for i, fault in enumerate(draw(seed, points)):
        suffer(home, home.open(render.id), fault, 1000 * seed + i)
    if home.open(render.id).status().state != "done":
        RenderRun(home.open(render.id)).run()
    render = home.open(render.id)
    assert render.status().state == "done"
    assert [(s.first, s.digest) for s in render.segments()] == truth
    assert len(list(render.frames())) == 49
    assert leftovers(render) == []
    assert not (render.path / "lock").exists()
    assert contents(render)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # no child is left


@pytest.mark.parametrize("seed", FEW)
def test_a_few_disturbed_renders(home, truths, seed, caplog):
    caplog.set_level(logging.ERROR)
    disturbed(home, truths, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", MANY)
def test_many_disturbed_renders(home, truths, seed):
    disturbed(home, truths, seed)
