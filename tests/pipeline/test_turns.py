"""The parts of a model take turns on one device."""

import time
import weakref

from command import SMALL

from longreel.jobs.render import plan_render
from longreel.pipeline import parts
from longreel.pipeline.generator import Generator


def test_the_transformer_is_let_go_before_the_last_frames_are_decoded(monkeypatch):
    """Of a video of one window, no frame is decoded beside it."""
    held, is_gone, load = [], [], parts.load_dit

    def noted(*args, **more):
        model = load(*args, **more)
        held.append(weakref.ref(model))
        return model

    def report(what, done, total, note=""):
        if what == "decode":
            deadline = time.monotonic() + 10  # for the thread that makes latents to end
            while held[0]() is not None and time.monotonic() < deadline:
                time.sleep(0.01)
            is_gone.append(held[0]() is None)

    monkeypatch.setattr(parts, "load_dit", noted)
    generator = Generator(plan_render("a cat", overrides=SMALL), report)
    assert len([*generator.chunks()]) == len(is_gone) == 3
    assert all(is_gone)
    assert generator.busy_s() > [0.0]  # it is asked for after the end, too
