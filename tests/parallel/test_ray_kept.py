"""Three actors kept from render to render: the bits, the errors and the pace of one process."""

import time
from functools import partial

import pytest
import ray
import torch
from poison import make_poisoned_stage
from ray_cluster import Warm, latents_of, make_plan
from tiny_blocks import POLICIES, overrides

from longreel.jobs.render import plan_render
from longreel.pipeline import backend as backends
from longreel.pipeline.errors import RenderError
from longreel.pipeline.generator import Generator

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("tiny_archs", "two_nodes")]


@pytest.fixture(scope="module")
def warm(two_nodes):
    with Warm(3) as warm:
        yield warm


def test_actors_give_the_bits_of_one_process(warm, monkeypatch):
    wanted = [(policy, "model.dtype=float32") for policy in POLICIES]
    wanted += [(policy, "model.dtype=bfloat16") for policy in ("dualparal", "causal")]
    wanted += [("dualparal", "model.dtype=float32")]  # once more
    for one in wanted:
        latents_of(*one)

    def loaded(*_: object) -> None:
        raise AssertionError("weights were loaded in the driver")

    monkeypatch.setattr(backends.Experts, "get", loaded)
    for policy, dtype in wanted:
        plan = make_plan(policy, dtype, num_stages=3)
        ours = Generator(plan, open_backend=warm.backend).latents()
        assert torch.equal(ours, latents_of(policy, dtype)), (policy, dtype)


def test_keys_made_again_for_a_new_prompt_are_those_of_one_process(warm):
    def plan(num_stages):
        settings = overrides("causal-recache", f"parallel.num_stages={num_stages}")
        request = {"prompt_at": [(2.1, "a dog")], "overrides": [*settings, "model.device=cpu"]}
        return plan_render("a cat", frames=57, seed=3, **request)

    alone = Generator(plan(1)).latents()
    assert plan(1).schedule.new_prompts == (3,)
    ours = Generator(plan(3), open_backend=warm.backend).latents()
    assert torch.equal(ours, alone)
    blocks = Generator(plan(3), open_backend=warm.backend)
    stream = blocks.blocks()
    next(stream)
    blocks.set_prompt("a bird")
    rest = [block.latents_BCTHW for block in stream]
    assert not torch.equal(torch.cat(rest, dim=2), alone[:, :, 3:])


def test_a_reader_who_stops_reading_stops_admission(warm):
    plan = make_plan("dualparal", frames=4 * 60 + 1, num_stages=3)
    blocks = Generator(plan, open_backend=warm.backend).blocks()
    next(blocks)
    first = warm.crew.members[0]
    seen = []
    for _ in range(15):  # until nothing moves any more
        time.sleep(0.1)
        seen.append(ray.get(first.control("counters"), timeout=5).admitted)
    assert seen[-1] == seen[-5]
    assert seen[-1].finished - seen[-1].taken == 2  # a burst of one, and one more
    assert seen[-1].begun <= seen[-1].finished + plan.schedule.max_inflight
    assert [block.block for block in blocks] == list(range(1, plan.schedule.num_blocks))


def test_an_error_in_a_stage_is_the_error_of_one_process(warm, monkeypatch):
    plan = make_plan("buffer", num_stages=3)
    build = partial(warm.backend, make_stage=partial(make_poisoned_stage, plan))
    with pytest.raises(RenderError, match="hold NaN or infinity") as ours:
        Generator(plan, open_backend=build).latents()
    monkeypatch.setattr(backends, "make_stage", make_poisoned_stage)
    with pytest.raises(RenderError) as local:
        Generator(make_plan("buffer")).latents()
    assert str(ours.value) == str(local.value)
