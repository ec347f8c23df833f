"""Scores: ideal on the truth, and each fault found by its own metric and by no other."""

import numpy as np
import pytest

from longreel.jobs.evaluate.frechet import (
    features,
    frechet_distance,
    reference_features,
)
from longreel.jobs.evaluate.identity import BINS, identity_curve
from longreel.jobs.evaluate.measure import IDEALS, measure
from longreel.jobs.world.draw import draw
from longreel.jobs.world.scene import Ground, Motion, Scene, Thing, random_scene
from longreel.jobs.world.words import DRIFTS, SIZE, THING_COLOURS

FRAMES = 65
BORDERS = range(29, FRAMES, 32)
# a bounce or a meeting beside a border is a change too; colours are rounded to bytes
ALLOWED = dict.fromkeys(IDEALS, 0.0) | {"seam": 0.35, "flicker": 0.3, "drift": 0.1}
RIGHT = Motion(kind="drift", heading=DRIFTS[0], speed="slowly")
SCENE = Scene(
    things=(
        Thing(shape="circle", colour="red", size="medium", motion=RIGHT, start=(16.0, 30.0)),
        Thing(shape="cross", colour="cyan", size="large", motion=RIGHT, start=(20.0, 70.0)),
    ),
    ground=Ground(kind="gradient", colours=("navy", "gray"), across=False),
)


def faults(scores):
    """Names of the scores that are not ideal."""
    return {
        name
        for name, score in scores.items()
        if score is not None and abs(score - IDEALS[name]) > ALLOWED[name]
    }


@pytest.fixture
def clip():
    frames = draw(SCENE, 0, FRAMES)
    frames.flags.writeable = True
    return frames


@pytest.mark.parametrize("seed", range(64, 68))
def test_the_truth_is_ideal(seed):
    scene = random_scene(seed, "held-out")
    scores, tracked = measure(draw(scene, 0, FRAMES), scene, BORDERS)
    assert faults(scores) == set()
    curve = identity_curve(tracked)
    assert len(curve) == BINS
    assert {*curve} <= {1.0, None}  # none: at the edge all the time


def test_the_clip_that_faults_are_planted_in_is_ideal(clip):
    assert faults(measure(clip, SCENE, BORDERS)[0]) == set()


def painted(clip, frames, old, new):
    """In these frames, what has one thing's colour has another's."""
    part = clip[frames].astype(np.float32)
    off = np.linalg.norm(part - np.array(THING_COLOURS[old]), axis=-1)
    part[off < 60] = THING_COLOURS[new]
    clip[frames] = part.astype(np.uint8)


def test_a_swapped_colour_is_lost_identity(clip):
    painted(clip, slice(40, 52), "red", "green")
    scores, _ = measure(clip, SCENE, BORDERS)
    assert faults(scores) == {"identity", "identity_last"}
    # twelve frames of 65, of one thing of two
    assert scores["identity"] == pytest.approx(1 - 12 / 65 / 2)


def test_the_wrong_colour_throughout_is_another_prompt(clip):
    painted(clip, slice(None), "red", "green")
    scores, _ = measure(clip, SCENE, BORDERS)
    assert faults(scores) == {"prompt", "prompt_whole", "colour", "shape"}
    assert (scores["colour"], scores["shape"]) == (0.5, 0.5)


def test_a_missing_thing_is_another_count():
    fewer = Scene(things=SCENE.things[:1], ground=SCENE.ground)
    scores, _ = measure(draw(fewer, 0, FRAMES), SCENE, BORDERS)
    missing = {"prompt", "prompt_whole", "count", "colour", "shape", "speed", "direction"}
    assert faults(scores) == missing


def test_another_ground_is_another_prompt():
    turned = Scene(things=SCENE.things, ground=Ground(kind="gradient", colours=("gray", "navy")))
    scores, _ = measure(draw(turned, 0, FRAMES), SCENE, BORDERS)
    assert faults(scores) == {"prompt", "prompt_whole", "ground"}


def test_a_jump_is_a_teleport():
    far = [*SCENE.things]
    far[0] = Thing(
        **{name: getattr(far[0], name) for name in ("shape", "colour", "size", "motion")},
        start=(28.0, 18.0),
    )
    frames = draw(SCENE, 0, FRAMES)
    frames[34:] = draw(Scene(things=tuple(far), ground=SCENE.ground), 34, FRAMES - 34)
    scores, _ = measure(frames, SCENE, BORDERS)
    assert scores["teleports"] == pytest.approx(100 / FRAMES)
    # the path bends at both ends of the jump, which is what a jump is
    assert faults(scores) == {"teleports", "smoothness"}
    assert scores["smoothness"] > 0.97


@pytest.mark.parametrize(
    ("speed", "heading", "fault"),
    [
        ("quickly", DRIFTS[0], "speed"),
        ("slowly", DRIFTS[3], "direction"),
    ],
)
def test_another_motion_is_found(speed, heading, fault):
    other = Motion(kind="drift", heading=heading, speed=speed)
    things = tuple(
        Thing(shape=t.shape, colour=t.colour, size=t.size, motion=other, start=t.start)
        for t in SCENE.things
    )
    scores, _ = measure(draw(Scene(things=things, ground=SCENE.ground), 0, FRAMES), SCENE, BORDERS)
    assert faults(scores) - {"seam"} == {fault}


def test_trembling_is_not_smooth():
    frames = draw(SCENE, 0, FRAMES)
    frames[1::2] = np.roll(frames[1::2], 2, axis=2)
    scores, _ = measure(frames, SCENE, BORDERS)
    assert scores["smoothness"] < 0.1
    assert scores["identity"] == scores["prompt"] == 1
    assert scores["teleports"] == 0


def test_a_seam_is_found_at_its_border(clip):
    shifted = clip.astype(np.int16)
    shifted[29:61] += 3
    scores, _ = measure(shifted.clip(0, 255).astype(np.uint8), SCENE, [29, 61])
    assert scores["seam"] > 2
    assert faults(scores) - {"drift"} == {"seam"}
    assert measure(shifted.astype(np.uint8), SCENE, [13, 45])[0]["seam"] < 1.2


def test_flicker_is_found(clip):
    shaken = clip.astype(np.int16)
    shaken[::2] += 3
    scores, _ = measure(shaken.clip(0, 255).astype(np.uint8), SCENE, BORDERS)
    assert scores["flicker"] == pytest.approx(3, abs=0.3)
    assert faults(scores) == {"flicker"}


def test_a_ground_that_wanders_drifts(clip):
    ramp = np.linspace(0, 12, FRAMES)[:, None, None, None]
    moved = np.clip(clip + ramp, 0, 255).astype(np.uint8)
    scores, _ = measure(moved, SCENE, BORDERS)
    # between the means of two halves
    assert scores["drift"] == pytest.approx(6, abs=0.5)
    assert faults(scores) == {"drift"}


def test_noise_scores_badly():
    frames = np.random.default_rng(0).integers(0, 256, (33, SIZE, SIZE, 3)).astype(np.uint8)
    scores, _ = measure(frames, SCENE, [29])
    for name in ("prompt", "identity", "identity_last", "smoothness", "ground", "shape"):
        assert scores[name] < 0.1, name
    assert scores["prompt_whole"] == 0


def test_the_distance_tells_the_world_from_what_is_not():
    reference = reference_features()
    clips = [draw(random_scene(seed, "held-out"), 0, 33) for seed in range(24)]
    near = frechet_distance(np.concatenate([features(clip) for clip in clips]), reference)
    assert frechet_distance(reference, reference) == pytest.approx(0, abs=1e-3)
    rng = np.random.default_rng(0)
    worse = {
        "noise": [rng.integers(0, 256, clip.shape).astype(np.uint8) for clip in clips],
        "gray": [clip // 2 + 64 for clip in clips],
        "rough": [
            np.clip(clip + rng.normal(0, 30, clip.shape), 0, 255).astype(np.uint8) for clip in clips
        ],
        "shuffled": [clip[rng.permutation(len(clip))] for clip in clips],
    }
    for name, others in worse.items():
        far = frechet_distance(np.concatenate([features(clip) for clip in others]), reference)
        assert far > 1.1 * near, (name, far, near)


def test_features_are_those_of_windows():
    """Eight at most; a clip shorter than a window has none, and one window no distribution."""
    frames = draw(SCENE, 0, 160)
    assert len(features(frames)) == 8
    assert len(features(frames[:15])) == 0
    assert np.allclose(features(frames[:16]), features(frames)[:1])
    assert frechet_distance(features(frames[:16]), features(frames)) is None
