"""Captions: plain words of a fixed list, from which all that the scene shows can be read back."""

import re

import pytest

from longreel.jobs.world.captions import caption, vocabulary
from longreel.jobs.world.scene import random_scene
from longreel.jobs.world.words import (
    BOUNCES,
    DRIFTS,
    GROUND_COLOURS,
    PANS,
    SHAPES,
    SIZES,
    SPEEDS,
    THING_COLOURS,
)

VERBS = {
    "still": ("stands still", "stand still", "standing still"),
    "drift": (
        "drift",
        "drifts",
        "drifting",
        "move",
        "moves",
        "moving",
        "float",
        "floats",
        "floating",
    ),
    "bounce": ("bounce", "bounces", "bouncing", "go", "goes", "going"),
}
NUMBERS = {"a": 1, "an": 1, "two": 2, "three": 3}
OTHER_WORDS = (
    "over on in front of and background backdrop gradient from to checkered left right top bottom "
    "while the camera pans"
)
WORDS = {
    word
    for phrase in [
        *(verb for verbs in VERBS.values() for verb in verbs),
        *NUMBERS,
        *SIZES,
        *THING_COLOURS,
        *GROUND_COLOURS,
        *SPEEDS,
        *(heading.words for heading in (*DRIFTS, *BOUNCES)),
        *(f"{shape} {shape}s {shape}es" for shape in SHAPES),
        OTHER_WORDS,
    ]
    for word in phrase.split()
} - {"circlees", "squarees", "trianglees", "stares", "crosss"}

ground = "|".join(GROUND_COLOURS)
GROUND = re.compile(
    rf" (?:over|on|in front of) a (?:(?P<plain>{ground}) (?:background|backdrop)"
    rf"|(?P<one>{ground}) and (?P<other>{ground}) checkered (?:background|backdrop)"
    rf"|gradient from (?P<first>{ground}) to (?P<last>{ground}) from (?P<way>left|top) to \w+)"
    r"(?:(?:,| while) the camera pans (?P<pan>left|right))?$"
)
NAME = (
    rf"(?:(?:{'|'.join(NUMBERS)}) (?:(?:{'|'.join(SIZES)}) )?(?:{'|'.join(THING_COLOURS)}) "
    rf"(?:{'|'.join(SHAPES)})e?s?)"
)
NAMES = rf"{NAME}(?:(?:, {NAME})* and {NAME})?"
MOVES = "|".join(
    [
        *VERBS["still"],
        *(
            rf"(?:{'|'.join(VERBS[kind])})(?: (?:{'|'.join(SPEEDS)}))?"
            rf" (?:{'|'.join(h.words for h in ways)})"
            for kind, ways in (("drift", DRIFTS), ("bounce", BOUNCES))
        ),
    ]
)
CLAUSE = re.compile(rf"(?P<names>{NAMES}) (?P<move>{MOVES})(?:, | and |$)")


def read_ground(found):
    if found["plain"]:
        return "plain", (found["plain"],), None
    if found["one"]:
        return "checkered", (found["one"], found["other"]), None
    return "gradient", (found["first"], found["last"]), found["way"] == "left"


def read_motion(words):
    if "still" in words:
        return "still", None, None
    speed = next((speed for speed in SPEEDS if speed in words.split()), "steadily")
    kind = next(k for k, verbs in VERBS.items() if words.split()[0] in verbs)
    heading = next(
        h for h in (DRIFTS if kind == "drift" else BOUNCES) if words.endswith(f" {h.words}")
    )
    return kind, speed, heading


def read_names(words):
    for name in re.findall(NAME, words):
        number, *looks = name.split()
        size = looks[0] if looks[0] in SIZES else "medium"
        shape = next(s for s in SHAPES if looks[-1] in (s, f"{s}s", f"{s}es"))
        yield from [(size, looks[-2], shape)] * NUMBERS[number]


def read(text):
    """(things, ground, pan), by nothing but the words."""
    ending = GROUND.search(text)
    assert ending, text
    subject, things, at = text[: ending.start()], [], 0
    while at < len(subject):
        clause = CLAUSE.match(subject, at)
        assert clause, (text, subject[at:])
        motion = read_motion(clause["move"])
        things += [(looks, motion) for looks in read_names(clause["names"])]
        at = clause.end()
    return things, read_ground(ending), ending["pan"]


def shown(scene):
    things = []
    for thing in scene.things:
        motion = thing.motion
        still = motion.kind == "still"
        said = (motion.kind, None if still else motion.speed, None if still else motion.heading)
        things.append((thing.looks, said))
    across = scene.ground.across if scene.ground.kind == "gradient" else None
    pan = scene.pan.words if scene.pan else None
    return things, (scene.ground.kind, scene.ground.colours, across), pan


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_a_caption_says_all_that_is_shown(split):
    for seed in range(600):
        scene = random_scene(seed, split)
        things, where, pan = read(caption(scene, seed))
        expected_things, expected_where, expected_pan = shown(scene)
        assert sorted(map(repr, things)) == sorted(map(repr, expected_things)), caption(scene, seed)
        assert (where, pan) == (expected_where, expected_pan)


def test_every_word_is_of_the_list_and_all_of_it_is_used():
    used = {
        word
        for seed in range(1200)
        for word in re.findall(r"\w+", caption(random_scene(seed), seed))
    }
    assert used == WORDS == set(vocabulary()) - {","}


def test_one_scene_has_several_phrasings_and_one_seed_one():
    scene = random_scene(5)
    assert len({caption(scene, seed) for seed in range(30)}) >= 8
    assert caption(scene, 3) == caption(scene, 3)


def test_the_vocabulary_is_small():
    assert len(WORDS) < 100, len(WORDS)
    assert all(re.fullmatch("[a-z]+", word) for word in WORDS)


def test_pans_have_words():
    assert {pan.words for pan in PANS} == {"left", "right"}
