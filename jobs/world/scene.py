"""Scenes: what there is and how it moves, as a pure function of a seed and of time.

Every motion is in closed form, so any stretch of an endless video can be asked for by itself.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from .words import (
    BOUNCES,
    DRIFTS,
    GROUND_COLOURS,
    PAN_SPEED,
    PANS,
    SHAPES,
    SIZE,
    SIZES,
    SPEEDS,
    THING_COLOURS,
    Heading,
)

Split = Literal["train", "held-out"]
_STREAMS = {"train": 1, "held-out": 2}  # of random numbers, so no seed of one is one of the other
_APART = 2.0  # pixels between two things at the start: less, and two of a colour look like one


@dataclass(frozen=True, kw_only=True)
class Motion:
    """How a thing moves from where it is at frame 0."""

    kind: Literal["still", "drift", "bounce"]
    heading: Heading = DRIFTS[0]
    speed: str = "steadily"

    @property
    def velocity(self) -> np.ndarray[Any, Any]:
        """Pixels a frame, (x, y)."""
        if self.kind == "still":
            return np.zeros(2)
        return np.array([self.heading.x, self.heading.y]) * SPEEDS[self.speed]


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object; start is its centre at frame 0."""

    shape: str
    colour: str
    size: str
    motion: Motion
    start: tuple[float, float]

    @property
    def radius(self) -> float:
        """Of the circle of its area."""
        return SIZES[self.size]

    @property
    def looks(self) -> tuple[str, str, str]:
        return self.size, self.colour, self.shape


@dataclass(frozen=True, kw_only=True)
class Ground:
    """The backdrop: one colour, or two in a gradient or checks."""

    kind: Literal["plain", "gradient", "checkered"]
    colours: tuple[str, ...]
    across: bool = True  # a gradient from left to right, else from top to bottom


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Things later in the list hide those before them."""

    things: tuple[Thing, ...]
    ground: Ground
    pan: Heading | None = None  # where the camera goes

    @property
    def pan_velocity(self) -> np.ndarray[Any, Any]:
        """Pixels a frame, (x, y)."""
        if self.pan is None:
            return np.zeros(2)
        return np.array([self.pan.x, self.pan.y]) * PAN_SPEED


def random_scene(seed: int, split: Split = "train") -> Scene:
    """The scene of this number; the two splits share none."""
    rng = np.random.Generator(np.random.PCG64([_STREAMS[split], seed]))
    ground = _ground(rng)
    pans = ground.kind == "checkered" and rng.random() < 0.4  # seen best there
    pan = PANS[rng.integers(len(PANS))] if pans else None
    count = int(rng.choice([1, 2, 3], p=[0.45, 0.35, 0.2]))
    colours = rng.permutation(list(THING_COLOURS))
    things = [_thing(rng, str(colours[i]), pan is not None) for i in range(count)]
    if count > 1 and rng.random() < 0.35:  # some alike, which go alike
        alike = 3 if count == 3 and rng.random() < 0.4 else 2
        things[:alike] = [things[0]] * alike
    if count > 1 and rng.random() < 0.3:  # all go alike
        things = [replace(thing, motion=things[0].motion) for thing in things]
    return Scene(things=_apart(rng, things), ground=ground, pan=pan)


def centres(scene: Scene, frames: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(frames, things, 2): x and y of each thing's centre on the screen."""
    return np.stack([_path(thing, scene, frames) for thing in scene.things], axis=1)


def extent(thing: Thing) -> float:
    """How far the shape reaches from its centre."""
    return REACH[thing.shape] * thing.radius


# Reach of each shape as a multiple of the radius of the circle of its area.
STAR_WAIST = 0.45  # inner over outer radius
REACH = {
    "circle": 1.0,
    "square": float(np.sqrt(np.pi) / 2),  # half a side
    "triangle": float(2 * np.sqrt(np.pi / (3 * np.sqrt(3)))),  # circumradius
    "star": float(np.sqrt(np.pi / (5 * STAR_WAIST * np.sin(np.pi / 5)))),  # outer radius
    "cross": float(np.sqrt(np.pi * 9 / 20)),  # half an arm's length, a third as wide
}


def _path(thing: Thing, scene: Scene, frames: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    start = np.array(thing.start)
    reach = extent(thing)
    if scene.pan is None and thing.motion.kind == "bounce":
        low, high = reach, SIZE - reach
        at = start + frames[:, None] * thing.motion.velocity - low
        turn = np.mod(at, 2 * (high - low))
        bounced: np.ndarray[Any, Any] = low + np.minimum(turn, 2 * (high - low) - turn)
        return bounced
    velocity = thing.motion.velocity - scene.pan_velocity
    period = SIZE + 2 * reach  # just out of sight on one side is just out of sight on the other
    moved = np.mod(start + reach + frames[:, None] * velocity, period) - reach
    return np.where(velocity != 0, moved, start)


def _ground(rng: np.random.Generator) -> Ground:
    kind: Any = rng.choice(["plain", "gradient", "checkered"], p=[0.5, 0.25, 0.25])
    colours = [str(name) for name in rng.permutation(list(GROUND_COLOURS))]
    return Ground(
        kind=str(kind),  # type: ignore[arg-type]
        colours=tuple(colours[: 1 if kind == "plain" else 2]),
        across=bool(rng.random() < 0.5),
    )


def _thing(rng: np.random.Generator, colour: str, panned: bool) -> Thing:
    shape = str(rng.choice(SHAPES))
    size = str(rng.choice(list(SIZES)))
    # under a pan nothing can turn at the edges of the view
    kind: Any = rng.choice(["still", "drift", "bounce"], p=[0.1, 0.45, 0.45])
    if panned and kind == "bounce":
        kind = "drift"
    headings = BOUNCES if kind == "bounce" else DRIFTS
    motion = Motion(
        kind=str(kind),  # type: ignore[arg-type]
        heading=headings[rng.integers(len(headings))],
        speed=str(rng.choice(list(SPEEDS))),
    )
    return Thing(shape=shape, colour=colour, size=size, motion=motion, start=_start(rng))


def _start(rng: np.random.Generator) -> tuple[float, float]:
    x, y = rng.uniform(0.2 * SIZE, 0.8 * SIZE, size=2)
    return float(x), float(y)


def _apart(rng: np.random.Generator, things: list[Thing]) -> tuple[Thing, ...]:
    """Starts where no thing touches another, or the furthest apart of some tries."""
    best, gap = things, -np.inf
    for _ in range(20):
        tried = [replace(thing, start=_start(rng)) for thing in things]
        now = min(
            (
                float(np.hypot(*np.subtract(a.start, b.start))) - _corner(a) - _corner(b)
                for i, a in enumerate(tried)
                for b in tried[:i]
            ),
            default=np.inf,
        )
        if now > gap:
            best, gap = tried, now
        if gap > _APART:
            break
    return tuple(best)


def _corner(thing: Thing) -> float:
    """How far the furthest point of a shape is from its centre."""
    return extent(thing) * {"square": 2**0.5, "cross": 10**0.5 / 3}.get(thing.shape, 1.0)
