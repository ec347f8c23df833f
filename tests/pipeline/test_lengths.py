"""Lengths that no model takes are refused in moments, and not walked through first."""

import pytest

from longreel.jobs.render import plan_render

HUGE = 400_000_000_001


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["blocks.policy=whole"], r"needs 100000000001 positions .* has 1024; use at most 4093"),
        (["blocks.policy=dualparal", f"blocks.size={HUGE}"], r"make windows of \d+ .* has 1024"),
        (["blocks.policy=dualparal-grouped", "blocks.left=1000000"], r"make windows of 1000008 "),
        (["blocks.policy=forcing", "blocks.left=1000000", "blocks.window=2000000"], r"of 1000005 "),
        (["blocks.policy=diagonal", "blocks.left=1000000"], r"make windows of 1000001 "),
    ],
)
@pytest.mark.parametrize("frames", [HUGE, 0])
def test_a_window_that_no_model_takes_is_not_walked_through(overrides, words, frames):
    if "blocks.policy=whole" in overrides and not frames:
        words = "has no end to wait for"
    with pytest.raises(ValueError, match=words):
        plan_render("a cat", preset="tiny", frames=frames, overrides=overrides)


def test_what_a_cluster_is_named_for_runs_there():
    named = plan_render("a cat", preset="tiny", overrides=["parallel.address=head:6379"])
    assert (named.backend, plan_render("a cat", preset="tiny").backend) == ("ray", "local")
