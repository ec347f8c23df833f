"""Schedules of every policy in sizes that are small and odd, for property tests."""

from dataclasses import replace
from itertools import islice

from hypothesis import strategies as st

from longreel.configs.schema import BlocksConfig
from longreel.parallel.tasks import Task
from longreel.pipeline.policies import make_schedule
from longreel.pipeline.schedule import BlockSchedule

MANY = 300  # tasks of a video without an end

NUMBERS = {
    "whole": (),
    "dualparal": ("size", "left", "right"),
    "dualparal-grouped": ("size", "left", "right", "depth"),
    "dualparal-staggered": ("size", "left", "right", "stagger", "depth"),
    "diagonal": ("size", "left"),
    "buffer": ("size", "left", "stagger"),
    "forcing": ("size", "left", "stagger"),
    "rolling": ("size", "left", "sink"),
    "causal": ("size", "left", "sink"),
}
QUEUES = tuple(NUMBERS)


@st.composite
def schedules(
    draw: st.DrawFn,
    policies: tuple[str, ...] = QUEUES,
    open_ended: bool | None = None,
    sections: bool = True,
) -> BlockSchedule:
    """`open_ended`: whether the video has no end; none: either. `sections`: or some of the video is
    there already."""
    policy = draw(st.sampled_from(policies))
    steps = draw(st.integers(1, 8))
    size = draw(st.integers(1, 6))
    left = draw(st.integers(0, 9))
    most = {"size": (size, size), "left": (left, left), "right": (0, size)}
    most |= {"sink": (0, 7), "stagger": (0, steps), "depth": (1, 4)}
    numbers = {name: draw(st.integers(*most[name])) for name in NUMBERS[policy]}
    more = {}
    if policy == "forcing":
        more["window"] = left + size + size // 2 + draw(st.integers(0, 12))
    if policy == "causal":
        more["recache"] = draw(st.sampled_from(["none", "prompt"]))
    blocks = BlocksConfig(policy=policy, **numbers, **more)
    endless = draw(st.booleans()) if open_ended is None else open_ended
    num_latents = None if endless and policy != "whole" else draw(st.integers(1, 40))
    if sections and num_latents is not None and policy != "whole" and draw(st.booleans()):
        first = draw(st.integers(0, 13))
        schedule = make_schedule(blocks, steps, first + num_latents)
        after = draw(st.integers(0, schedule.right))
        schedule = replace(schedule, first=first, after=after)
    else:
        schedule = make_schedule(blocks, steps, num_latents)
    if not schedule.recache or schedule.num_blocks is None:
        return schedule
    later = list(range(schedule.first_block + 1, schedule.num_blocks))
    new = draw(st.sets(st.sampled_from(later), max_size=4)) if later else set()
    return replace(schedule, new_prompts=tuple(sorted(new)))


def first_tasks(schedule: BlockSchedule) -> list[Task]:
    """All tasks of a video that ends, the first whole sweeps of one that does not."""
    if schedule.num_latents is not None:
        return list(schedule.tasks())
    tasks = list(islice(schedule.tasks(), MANY))
    return [task for task in tasks if task.tick < tasks[-1].tick]
