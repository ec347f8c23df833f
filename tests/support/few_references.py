"""Evaluations whose Frechet distance is to a clip of the world; all of it takes seconds to draw."""

import pytest

from longreel.jobs.evaluate import table
from longreel.jobs.evaluate.frechet import features
from longreel.jobs.world.draw import draw
from longreel.jobs.world.scene import random_scene


def few_references(monkeypatch: pytest.MonkeyPatch) -> None:
    windows_ND = features(draw(random_scene(0), 0, 128))
    monkeypatch.setattr(table, "reference_features", lambda: windows_ND)
