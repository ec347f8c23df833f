"""One clip and what it was asked to be, to all its scores."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..world.scene import Scene
from ..world.track import Tracked, track
from .change import drift, flicker, seam_ratio
from .identity import identity_kept
from .motion import as_asked, smoothness, teleports
from .prompt import prompt_kept

Scores = dict[str, float | None]

# in the order of tables, with what an ideal clip has
IDEALS = {
    "prompt": 1.0,
    "prompt_whole": 1.0,
    "count": 1.0,
    "colour": 1.0,
    "shape": 1.0,
    "ground": 1.0,
    "identity": 1.0,
    "identity_last": 1.0,
    "smoothness": 1.0,
    "speed": 1.0,
    "direction": 1.0,
    "teleports": 0.0,
    "seam": 1.0,
    "flicker": 0.0,
    "drift": 0.0,
}


def measure(
    frames_THWC: np.ndarray[Any, Any], scene: Scene, borders: Sequence[int]
) -> tuple[Scores, Tracked]:
    """Scores by name, and what was tracked; none where a clip has nothing to judge."""
    tracked = track(frames_THWC)
    scores: Scores = {
        **prompt_kept(scene, tracked),
        **identity_kept(tracked),
        "smoothness": smoothness(tracked),
        **as_asked(scene, tracked),
        "teleports": teleports(tracked),
        "seam": seam_ratio(frames_THWC, borders),
        "flicker": flicker(tracked, borders),
        "drift": drift(tracked),
    }
    assert scores.keys() == IDEALS.keys()
    return scores, tracked
