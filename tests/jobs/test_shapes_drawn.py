"""What the models that ship draw is what was asked for, as the world's own tracker sees it."""

import numpy as np
import pytest

import longreel
from longreel.jobs.world.track import track

# of the live model, two chunks: the second is drawn after what the first has shown
DRAWN = [
    ("shapes", 17, "large yellow square", "stands still", "navy"),
    ("shapes-live", 21, "large red circle", "drifts slowly to the right", "black"),
    ("shapes-live", 21, "large pink star", "stands still", "navy"),
]


@pytest.mark.parametrize(("preset", "frames", "looks", "moves", "ground"), DRAWN)
def test_a_thing_has_the_looks_and_the_ground_that_were_asked_for(
    preset, frames, looks, moves, ground
):
    prompt = f"a {looks} {moves} over a {ground} background"
    overrides = ["model.device=cpu", "model.text_cache="]
    stream = longreel.stream(prompt, preset=preset, frames=frames, seed=0, overrides=overrides)
    seen = track(np.concatenate([chunk.frames for chunk in stream]))
    assert [thing.looks for thing in seen.things] == [tuple(looks.split())]
    assert (seen.backdrop.kind, seen.backdrop.colours) == ("plain", (ground,))
