"""What is asked of a few tasks is true of all of them."""

from dataclasses import replace

import hypothesis.strategies as st
import pytest
from any_schedule import QUEUES, schedules
from hypothesis import given, settings

from longreel.configs.load import load_config
from longreel.configs.schema import BlocksConfig
from longreel.pipeline.kinds import telling_tasks
from longreel.pipeline.plan import make_plan
from longreel.pipeline.policies import make_schedule
from longreel.pipeline.request import Request

LONGER = 600  # latents


def _windows(tasks):
    """As attention sees them."""
    return {(t.positions, t.context_positions, bool(t.reads or t.stores)) for t in tasks}


@pytest.mark.parametrize("policy", sorted({*QUEUES} - {"whole"}))
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_few_tasks_have_all_windows_of_a_long_video(policy, data):
    short = data.draw(schedules((policy,), open_ended=False))
    longer = short.num_latents + data.draw(st.integers(0, LONGER))
    schedule = replace(short, num_latents=longer, new_prompts=())
    assert _windows(telling_tasks(schedule, 500)) == _windows(schedule.tasks())


def test_a_window_may_hold_more_blocks_at_first():
    """Three, and two once it has one to their left."""
    blocks = BlocksConfig(policy="forcing", size=1, left=1, window=3, stagger=3, prefix_level=0)
    schedule = replace(make_schedule(blocks, steps=3, num_latents=469), stagger=0)
    assert _windows(telling_tasks(schedule, 500)) == _windows(schedule.tasks())


def test_few_are_few_where_a_queue_is_made_for_many_stages():
    """They were 62,000, of which each plan of a long video made three seconds' work."""
    blocks = BlocksConfig(policy="dualparal-grouped", depth=32)
    schedule = make_schedule(blocks, steps=50, num_latents=8003)
    assert sum(1 for _ in telling_tasks(schedule, 2_000)) < 15_000


@pytest.mark.parametrize("latents", [188, 541, 548])
def test_a_long_video_whose_end_alone_has_no_boxes_is_refused_as_a_short_one_is(latents):
    overrides = ("size=9", "left=9", "right=0", "policy=dualparal-grouped")
    config = load_config(
        "wan2.1-t2v-1.3b",
        [
            f"video.frames={1 + 4 * (latents - 1)}",
            "attention.builder=tile-window",
            *(f"blocks.{override}" for override in overrides),
        ],
    )
    with pytest.raises(ValueError, match=r"tile-window needs boxes of .* a window of (17|19) lat"):
        make_plan(Request(prompt="a cat", config=config))
