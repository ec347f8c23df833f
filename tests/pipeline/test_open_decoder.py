"""Where decoding has a worker of its own, its decoder is there before the first block is."""

import logging

import pytest

from longreel.jobs.render import plan_render
from longreel.models.shelf import Shelf
from longreel.pipeline import codec
from longreel.pipeline.backend import LocalBackend
from longreel.pipeline.decoding import make_codec
from longreel.pipeline.generator import Generator


def make_plan():
    return plan_render(
        "a cat",
        preset="tiny",
        frames=9,
        overrides=["model.device=cpu", "model.text_cache=", "sampling.steps=2"],
    )


class Watched(LocalBackend):
    """Notes what it is asked for."""

    def __init__(self, plan):
        super().__init__(plan)
        self.asked = []
        for name in ("texts", "expect_decoding", "chain", "decode"):
            setattr(self, name, self._noted(name, getattr(self, name)))

    def _noted(self, name, method):
        def note(*args):
            self.asked.append(name)
            return method(*args)

        return note


def test_it_is_expected_once_nothing_else_is_asked_and_only_if_frames_are_wanted():
    plan = make_plan()
    backend = Watched(plan)
    for _ in Generator(plan, open_backend=lambda *plan: backend).chunks():
        pass
    assert backend.asked[:4] == ["texts", "chain", "expect_decoding", "decode"]
    backend = Watched(plan)
    Generator(plan, open_backend=lambda *plan: backend).latents()
    assert backend.asked == ["texts", "chain"]


def test_what_cannot_be_opened_is_logged_and_said_again_when_it_is_needed(monkeypatch, caplog):
    shelf = Shelf()
    made = make_codec(make_plan(), "cpu", shelf)
    monkeypatch.setattr(codec, "load_plan_vae", lambda plan: 1 / 0)
    with caplog.at_level(logging.WARNING, logger="longreel"):
        made.open_decoder()
    assert "the decoder could not be opened yet" in caplog.text
    with pytest.raises(ZeroDivisionError):
        _ = made._vae
    monkeypatch.undo()
    made.open_decoder()
    monkeypatch.setattr(codec, "load_plan_vae", lambda plan: 1 / 0)
    assert made._vae is not None  # it is there
