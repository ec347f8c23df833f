"""A plan's queue is its model's, with numbers of the model's own, or refused in words."""

import pytest

from longreel.jobs.render import plan_render
from longreel.models.arch import ARCHS
from longreel.pipeline.plan_blocks import find_policy


def plan(*overrides, preset="tiny"):
    return plan_render("a cat", preset=preset, overrides=overrides)


@pytest.mark.parametrize(
    ("arch", "overrides", "each"),
    [
        ("shapes", [], True),
        ("shapes", ["blocks.levels=window"], False),
        ("tiny", [], False),
        ("tiny", ["blocks.levels=latent"], True),
    ],
)
def test_latents_are_told_their_own_levels_where_the_model_knows_them(arch, overrides, each):
    made = plan(f"model.arch={arch}", "blocks.policy=dualparal-grouped", *overrides)
    assert made.schedule.per_latent == each


@pytest.mark.parametrize(
    ("arch", "frames", "policy"),
    [
        ("shapes", 93, "whole"),
        ("shapes", 97, "forcing"),
        ("tiny", 97, "dualparal-grouped"),
        ("shapes-live", 9, "causal"),
    ],
)
def test_the_queue_is_of_the_model_s_kind(arch, frames, policy):
    found = plan(f"model.arch={arch}", f"video.frames={frames}")
    assert find_policy(found.config, ARCHS[arch], 1 + (frames - 1) // 4) == policy


@pytest.mark.parametrize(
    ("arch", "overrides", "numbers"),
    [
        ("shapes", [], (8, 8, 4)),
        ("shapes", ["sampling.steps=5"], (8, 8, 3)),
        ("shapes", ["blocks.left=3", "blocks.stagger=1"], (8, 3, 1)),
        ("shapes", ["blocks.size=2"], (2, 8, 4)),
        ("tiny", [], (5, 5, 5)),
    ],
)
def test_forcing_has_numbers_of_the_model_s_own(arch, overrides, numbers):
    made = plan(f"model.arch={arch}", "blocks.policy=forcing", "sampling.steps=8", *overrides)
    assert (made.schedule.size, made.schedule.left, made.schedule.stagger) == numbers


@pytest.mark.parametrize(
    ("arch", "overrides", "stagger"),
    [
        ("shapes", [], 4),
        ("shapes", ["sampling.steps=5"], 3),
        ("shapes", ["blocks.stagger=2"], 2),
        ("tiny", ["blocks.depth=3"], 2),
    ],
)
def test_staggered_blocks_of_a_model_of_many_levels_are_half_the_steps_apart(
    arch, overrides, stagger
):
    policy = "blocks.policy=dualparal-staggered"
    made = plan(f"model.arch={arch}", policy, "sampling.steps=8", *overrides)
    assert made.schedule.stagger == stagger


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["policy=dualparal"], "policy=dualparal does not read it; leave it out, or set"),
        (["policy=forcing"], "does: dualparal-grouped, dualparal-staggered"),
        ([], "blocks.policy=whole does not read it"),
        (["policy=dualparal-staggered"], r"blocks.stagger=4 \(the model's own, if none was set\)"),
        (["policy=dualparal-staggered", "stagger=2"], "blocks.stagger=2 .*says how many steps"),
    ],
)
def test_a_depth_that_no_order_is_made_for_is_refused(overrides, words):
    said = rf"^blocks\.depth=3 would be ignored, as .*{words}"
    with pytest.raises(ValueError, match=said):
        plan(
            "model.arch=shapes",
            "sampling.steps=8",
            "blocks.depth=3",
            *(f"blocks.{override}" for override in overrides),
        )


def test_what_a_preset_has_for_its_own_queue_is_not_asked_of_another():
    numbers = plan("blocks.policy=whole", preset="self-forcing-1.3b").config.blocks
    assert numbers.left == 15
    with pytest.raises(ValueError, match=r"^blocks\.left=6 would be ignored"):
        plan("blocks.policy=whole", "blocks.left=6", preset="self-forcing-1.3b")


def test_a_model_of_one_level_a_window_is_not_told_several():
    with pytest.raises(ValueError, match=r"^blocks\.levels=latent tells .* blocks\.levels=window"):
        plan("blocks.policy=dualparal", "blocks.levels=latent", preset="wan2.1-t2v-1.3b")
