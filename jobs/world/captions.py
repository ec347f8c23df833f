"""Scenes in plain English, in several phrasings."""

from collections.abc import Sequence

import numpy as np

from .scene import Ground, Scene, Thing

_NUMBERS = {2: "two", 3: "three"}
_VERBS = {  # (one, several, of one in passing)
    "still": [("stands still", "stand still", "standing still")],
    "drift": [
        ("drifts", "drift", "drifting"),
        ("moves", "move", "moving"),
        ("floats", "float", "floating"),
    ],
    "bounce": [("bounces", "bounce", "bouncing"), ("goes", "go", "going")],
}
_ONTO = ["over", "on", "in front of"]


def caption(scene: Scene, seed: int = 0) -> str:
    """One of many ways to say what the scene shows; all of it can be read back from any."""
    rng = np.random.Generator(np.random.PCG64([3, seed]))
    clauses = [_clause(group, rng) for group in _groups(scene.things)]
    rng.shuffle(clauses)
    subject = _and(clauses) if rng.random() < 0.7 else ", ".join(clauses)
    words = f"{subject} {rng.choice(_ONTO)} {_ground(scene.ground, rng)}"
    if scene.pan is not None:
        pan = f"the camera pans {scene.pan.words}"
        words += f" while {pan}" if rng.random() < 0.5 else f", {pan}"
    return words


def _groups(things: Sequence[Thing]) -> list[list[Thing]]:
    """Things that move alike are one clause."""
    groups: dict[object, list[Thing]] = {}
    for thing in things:
        motion = thing.motion
        key = motion.kind if motion.kind == "still" else motion
        groups.setdefault(key, []).append(thing)
    return list(groups.values())


def _clause(things: Sequence[Thing], rng: np.random.Generator) -> str:
    alike: dict[tuple[str, str, str], int] = {}
    for thing in things:
        alike[thing.looks] = alike.get(thing.looks, 0) + 1
    names = [_name(looks, count, rng) for looks, count in alike.items()]
    motion = things[0].motion
    one, several, passing = _VERBS[motion.kind][rng.integers(len(_VERBS[motion.kind]))]
    finite = one if len(things) == 1 else several
    verb = passing if rng.random() < 0.3 else finite
    words = [_and(names), verb]
    if motion.kind != "still":
        # what is neither slow nor quick need not be said
        if motion.speed != "steadily" or rng.random() < 0.3:
            words.append(motion.speed)
        words.append(motion.heading.words)
    return " ".join(words)


def _name(looks: tuple[str, str, str], count: int, rng: np.random.Generator) -> str:
    size, colour, shape = looks
    words = [] if size == "medium" and rng.random() < 0.6 else [size]
    words.append(colour)
    plural = {"cross": "crosses"}.get(shape, f"{shape}s")
    words.append(shape if count == 1 else plural)
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([_NUMBERS.get(count, article), *words])


def _ground(ground: Ground, rng: np.random.Generator) -> str:
    back = rng.choice(["background", "backdrop"])
    if ground.kind == "plain":
        return f"a {ground.colours[0]} {back}"
    first, last = ground.colours
    if ground.kind == "checkered":
        return f"a {first} and {last} checkered {back}"
    way = "from left to right" if ground.across else "from top to bottom"
    return f"a gradient from {first} to {last} {way}"


def _and(words: Sequence[str]) -> str:
    if len(words) < 2:
        return words[0]
    return f"{', '.join(words[:-1])} and {words[-1]}"
