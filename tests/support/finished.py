"""Finished renders of tiny models, made once: what tests edit is a copy of one."""

import shutil

import numpy as np
from tiny_blocks import overrides, shallow

from longreel.jobs.home.edits import extend, redo
from longreel.jobs.home.folder import RenderFolder
from longreel.jobs.home.home import Home
from longreel.jobs.home.record import RenderRun
from longreel.jobs.render import plan_render

FRAMES = 41
EDITS = {"extend": lambda render: extend(render, 24), "redo": lambda render: redo(render, 14, 26)}


def plan(policy, *more, frames=FRAMES, **request):
    few = ["sampling.steps=3"] if policy not in ("causal", "causal-recache", "rolling") else []
    settings = overrides(policy, shallow(policy), "model.device=cpu", *few, *more)
    return plan_render("a cat", frames=frames, seed=3, overrides=settings, **request)


class Finished:
    """Every copy is a render of its own."""

    def __init__(self, place):
        self._place = place
        self._made = {}
        self._edited = {}

    def copy(self, into, policy, *more, **request):
        key = (policy, *more, *request.items())
        if key not in self._made:
            render = Home(self._place).create(plan(policy, *more, **request))
            assert RenderRun(render).run().state == "done"
            self._made[key] = render
        path = into / f"{len(list(into.iterdir()))}"
        shutil.copytree(self._made[key].path, path)
        return RenderFolder(path)

    def edited(self, policy, edit):
        """Digests of a copy that was edited, and made without a disturbance."""
        if (policy, edit) not in self._edited:
            place = self._place / f"edited{len(self._edited)}"
            place.mkdir(parents=True)
            render = self.copy(place, policy)
            EDITS[edit](render)
            self._edited[policy, edit] = make(render)
        return self._edited[policy, edit]


def digests(render):
    return [segment.digest for segment in render.segments()]


def frames_of(render, segments=None):
    return np.stack(list(render.frames(segments)))


def make(render, **how):
    assert RenderRun(render, **how).run().state == "done"
    return digests(render)
