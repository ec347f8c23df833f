"""The world: a pure function of seed and time, and a splitting of its seeds."""

from dataclasses import replace

import numpy as np
import pytest

from longreel.jobs.world.draw import coverage, draw, draw_with_owners
from longreel.jobs.world.scene import Motion, centres, extent, random_scene
from longreel.jobs.world.words import (
    GROUND_COLOURS,
    SHAPES,
    SIZE,
    SIZES,
    SPEEDS,
    THING_COLOURS,
)

SEEDS = range(300)


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_the_same_seed_is_the_same_clip(split):
    for seed in range(5):
        one, other = random_scene(seed, split), random_scene(seed, split)
        assert one == other
        assert np.array_equal(draw(one, 0, 5), draw(other, 0, 5))


def test_other_seeds_are_other_scenes():
    assert len({random_scene(seed) for seed in SEEDS}) == len(SEEDS)


@pytest.mark.parametrize("seed", range(8))
def test_any_stretch_equals_that_of_a_longer_clip(seed):
    scene = random_scene(seed, "held-out")
    long = draw(scene, 0, 60)
    assert np.array_equal(draw(scene, 37, 11), long[37:48])
    assert np.array_equal(np.concatenate([draw(scene, t, 1) for t in range(20)]), long[:20])
    assert draw(scene, 10**6, 1).shape == (1, SIZE, SIZE, 3)


def test_the_splits_share_no_scene():
    """Their random numbers come from different streams; starts are real numbers, so none recur."""
    train = {random_scene(seed, "train") for seed in range(1000)}
    held_out = {random_scene(seed, "held-out") for seed in range(1000)}
    assert not train & held_out
    starts = [
        {thing.start for scene in part for thing in scene.things} for part in (train, held_out)
    ]
    assert not starts[0] & starts[1]


def test_all_that_has_a_name_occurs():
    scenes = [random_scene(seed) for seed in SEEDS]
    things = [thing for scene in scenes for thing in scene.things]
    assert {thing.shape for thing in things} == {*SHAPES}
    assert {thing.colour for thing in things} == {*THING_COLOURS}
    assert {thing.size for thing in things} == {*SIZES}
    assert {thing.motion.speed for thing in things} == {*SPEEDS}
    assert {thing.motion.kind for thing in things} == {"still", "drift", "bounce"}
    assert {scene.ground.kind for scene in scenes} == {"plain", "gradient", "checkered"}
    assert {name for scene in scenes for name in scene.ground.colours} == {*GROUND_COLOURS}
    assert {len(scene.things) for scene in scenes} == {1, 2, 3}
    assert {scene.pan is None for scene in scenes} == {True, False}


@pytest.mark.parametrize("size", SIZES)
def test_shapes_of_one_size_cover_equal_areas(size):
    at = np.arange(-40, 41)
    grid = np.meshgrid(at, at)
    areas = {shape: coverage(shape, SIZES[size], *grid).sum() for shape in SHAPES}
    assert areas == pytest.approx(dict.fromkeys(SHAPES, np.pi * SIZES[size] ** 2), rel=0.05)


@pytest.mark.parametrize("seed", range(12))
def test_owners_agree_with_pixels(seed):
    """A thing's pixels have its colour, and away from things all is as without them."""
    scene = random_scene(seed, "held-out")
    frames, owners = draw_with_owners(scene, 0, 9)
    away = replace(scene.things[0], motion=Motion(kind="still"), start=(-500.0, -500.0))
    bare = draw(replace(scene, things=(away,)), 0, 9) if scene.pan is None else None
    for number, thing in enumerate(scene.things):
        off = np.abs(frames[owners == number] - np.array(THING_COLOURS[thing.colour], float))
        assert np.median(off) == 0
        assert (owners == number).sum() <= 9 * np.pi * thing.radius**2 * 1.05
    if bare is None:
        return  # what stands still leaves a view that moves
    near = owners >= 0
    for _ in range(4):  # a spike's soft tip is the longest edge
        grown = near.copy()
        for axis in (1, 2):
            grown |= np.roll(near, 1, axis) | np.roll(near, -1, axis)
        near = grown
    assert np.array_equal(frames[~near], bare[~near])


def test_two_alike_begin_as_two():
    """Nothing lies between the pixels of two things that could join them into one."""
    touching = 0
    for seed in range(400):
        scene = random_scene(seed)
        if len(scene.things) == 2 and scene.things[0].looks == scene.things[1].looks:
            _, owners = draw_with_owners(scene, 0, 1)
            first = owners[0] == 0
            near = first.copy()
            for axis in (0, 1):
                near |= np.roll(first, 1, axis) | np.roll(first, -1, axis)
            touching += bool((near & (owners[0] == 1)).any())
    assert touching == 0


def test_a_thing_goes_at_its_speed_until_it_turns_or_wraps():
    for seed in range(100):
        scene = random_scene(seed)
        paths = centres(scene, np.arange(200))
        for number, thing in enumerate(scene.things):
            steps = np.diff(paths[:, number], axis=0)
            asked = thing.motion.velocity - scene.pan_velocity
            if thing.motion.kind == "bounce":
                steps, asked = np.abs(steps), np.abs(asked)
            assert np.median(steps, axis=0) == pytest.approx(asked, abs=1e-6)
            assert (
                np.abs(np.diff(paths[:, number], axis=0)).max(axis=1) < 2 * extent(thing) + SIZE
            ).all()
