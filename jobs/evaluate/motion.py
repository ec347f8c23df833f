"""Whether things move as things do, and as the prompt asks."""

from itertools import pairwise
from typing import Any

import numpy as np

from ..world.scene import REACH, Scene, Thing
from ..world.track import Track, Tracked
from ..world.words import SIZE
from .prompt import pair

Array = np.ndarray[Any, Any]

_FASTEST = 3.5  # pixels a frame: quickly, against a pan
_JUMP = 5.5  # pixels in a frame that no thing of the world moves
_ROUGH = 1.0  # pixels that a step may differ from the one before; bends of the world: at the edge
_NEAR_EDGE = 3.5  # pixels within which a thing may turn
_SPEED_OFF = (0.15, 0.25)  # pixels a frame, and share of the speed asked for
_LEAST_COSINE = float(np.cos(np.pi / 8))  # half way to the next of eight directions
_LEAST_STEPS = 5


def smoothness(tracked: Tracked) -> float | None:
    """Share of steps, in mid-picture, that differ from the step before by a pixel at most."""
    if not tracked.things:
        return 0.0
    smooth = [bend <= _ROUGH for one in tracked.things for bend in _bends(one)]
    return sum(smooth) / len(smooth) if smooth else None


def teleports(tracked: Tracked) -> float | None:
    """Jumps of things in plain view, per hundred frames of the clip; none seen: none."""
    if not tracked.things:
        return None
    jumps = 0
    for one in tracked.things:
        frames, lost = list(one.clear), {*one.lost}
        for t, after in pairwise(frames):
            step = float(np.hypot(*(_place(one, after) - _place(one, t))))
            # across a gap it may have been hidden, unless that had no excuse
            if after == t + 1:
                jumps += step > _JUMP
            elif {*range(t + 1, after)} <= lost:
                jumps += step > _JUMP + _FASTEST * (after - t)
    return 100 * jumps / tracked.num_frames


def as_asked(scene: Scene, tracked: Tracked) -> dict[str, float | None]:
    """Shares of the things asked for that have the speed, and the direction, of their words.

    A thing that is not there has neither; one that is never seen to move is left out.
    """
    missing = [0.0] * max(0, len(scene.things) - len(tracked.things))
    speeds, directions = [*missing], [*missing]
    for thing, one in pair(scene, tracked):
        found = _velocity(one, folded=thing.motion.kind == "bounce")
        if found is None:
            continue
        asked = _asked(scene, thing)
        fast, wanted = float(np.hypot(*found)), float(np.hypot(*asked))
        speeds.append(float(abs(fast - wanted) <= _SPEED_OFF[0] + _SPEED_OFF[1] * wanted))
        if wanted > 0:
            cosine = float(found @ asked) / max(fast * wanted, 1e-6)
            directions.append(float(cosine >= _LEAST_COSINE))
    return {"speed": _mean(speeds), "direction": _mean(directions)}


def _asked(scene: Scene, thing: Thing) -> Array:
    """Pixels a frame on the screen; of what bounces, without signs."""
    velocity = thing.motion.velocity
    if thing.motion.kind == "bounce":
        velocity = np.abs(velocity)
    asked: Array = velocity - scene.pan_velocity
    return asked


def _velocity(one: Track, *, folded: bool) -> Array | None:
    """The median step; with signs left out, if it goes to and fro."""
    steps = [
        _place(one, t + 1) - _place(one, t)
        for t in one.clear
        if t + 1 in one.clear and not _near_edge(one, t)
    ]
    if len(steps) < _LEAST_STEPS:
        return None
    found: Array = np.median(np.abs(steps) if folded else steps, axis=0)
    return found


def _bends(one: Track) -> list[float]:
    return [
        float(np.hypot(*(_place(one, t + 1) - 2 * _place(one, t) + _place(one, t - 1))))
        for t in one.clear
        if t - 1 in one.clear and t + 1 in one.clear and not _near_edge(one, t)
    ]


def _near_edge(one: Track, t: int) -> bool:
    seen = one.clear[t]
    reach = REACH.get(seen.shape or "", 1.0) * seen.radius + _NEAR_EDGE
    return not (reach <= seen.x <= SIZE - reach and reach <= seen.y <= SIZE - reach)


def _place(one: Track, t: int) -> Array:
    return np.array([one.clear[t].x, one.clear[t].y])


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
