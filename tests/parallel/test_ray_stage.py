"""Stages in loops of their own, with messages between them, are the chain of one process."""

import threading
import time
from dataclasses import replace
from functools import cache, partial
from threading import Event

import pytest
import thread_chain
import torch
from poison import make_poisoned_stage
from processes import wait_until
from thread_chain import ThreadBackend
from tiny_blocks import POLICIES, overrides

from longreel.jobs.render import plan_render
from longreel.parallel import loop
from longreel.parallel.link import LinkClosed, open_sender
from longreel.parallel.ray_stage import StageActor
from longreel.pipeline import backend as backends
from longreel.pipeline.errors import RenderError
from longreel.pipeline.generator import Generator

pytestmark = pytest.mark.usefixtures("tiny_archs")


def make_plan(policy, *more, frames=33, steps=5, num_stages=1):
    settings = overrides(policy, *more, f"parallel.num_stages={num_stages}", steps=steps)
    return plan_render("a cat", frames=frames, seed=3, overrides=settings)


def make_short_plan(policy, *more, num_stages=1):
    """Of as few steps as leave work for five stages."""
    steps = 5 if policy in ("dualparal", "dualparal-staggered") else 3
    return make_plan(policy, *more, frames=25, steps=steps, num_stages=num_stages)


@cache
def of_one_process(policy, *more):
    return Generator(make_short_plan(policy, *more)).latents()


ALONE = ["dualparal-grouped", "causal"]
ROUNDED = [*ALONE, "forcing", "rolling"]
LOOPS = [("float32", 5, policy) for policy in POLICIES]
LOOPS += [("float32", 1, policy) for policy in ALONE] + [("bfloat16", 3, p) for p in ROUNDED]


@pytest.mark.parametrize(("dtype", "num_stages", "policy"), LOOPS)
def test_stages_in_loops_of_their_own_give_the_bits_of_one(dtype, num_stages, policy):
    plan = make_short_plan(policy, f"model.dtype={dtype}", num_stages=num_stages)
    cut = Generator(plan, open_backend=ThreadBackend).latents()
    assert torch.equal(cut, of_one_process(policy, f"model.dtype={dtype}"))


GUIDED = "sampling.guidance_mode=sequential"  # the few-step policies have none of their own
LAYOUTS = [
    (1, ["parallel.cfg=split"]),
    (3, ["parallel.cfg=split"]),
    (4, ["parallel.devices=2"]),
    (3, ["parallel.devices=1"]),
    (5, ["parallel.devices=4", "parallel.cfg=split"]),
    (5, ["parallel.devices=3"]),
]


@pytest.mark.parametrize(("nth", "policy"), [*enumerate(POLICIES)])
def test_branches_apart_and_stages_together_give_the_bits_of_one(nth, policy):
    """Every policy in two layouts of six; test_ray_layouts.py has both kinds of them."""
    expected = of_one_process(policy, GUIDED)
    for count, layout in LAYOUTS[nth % 3 :: 3]:
        plan = make_short_plan(policy, GUIDED, "parallel.backend=ray", *layout, num_stages=count)
        ours = Generator(plan, open_backend=ThreadBackend).latents()
        assert torch.equal(ours, expected), (count, layout)


def test_a_stage_begins_a_pass_while_the_one_before_is_at_the_next():
    """The first stage's second pass of every task waits here until the second stage is at the
    first: that comes only if it was handed on by itself."""
    arrived, built = threading.Semaphore(0), []

    def make_watched_stage(plan, layers, device, *shelf):
        stage = backends.make_stage(plan, layers, device)
        embed, run = stage.embed, stage.run

        def wait_and_embed(task, inputs, passing):
            assert passing == 0 or arrived.acquire(timeout=10), "the first pass was kept back"
            return embed(task, inputs, passing)

        def run_and_tell(task, x):
            if x.passing == 0:
                arrived.release()
            return run(task, x)

        if built:
            stage.run = run_and_tell
        else:
            stage.embed = wait_and_embed
        built.append(stage)
        return stage

    plan = make_plan("dualparal", num_stages=2)
    backend = partial(ThreadBackend, make_stage=make_watched_stage)
    expected = Generator(make_plan("dualparal")).latents()
    assert torch.equal(Generator(plan, open_backend=backend).latents(), expected)
    assert not arrived.acquire(blocking=False)  # each was waited for


def test_a_branch_without_work_is_told_so_and_waits_on():
    interval = ("sampling.guidance_from=0.5", "sampling.guidance_to=0.0", "sampling.steps=12")
    plan = make_plan("buffer", *interval, "parallel.cfg=split", num_stages=2)
    expected = Generator(make_plan("buffer", *interval)).latents()
    slow = ThreadBackend(plan, timeout_s=1.5, make_stage=make_slow_stage)
    assert torch.equal(Generator(plan, open_backend=lambda *plan: slow).latents(), expected)


def make_slow_stage(plan, layers, device, *shelf):
    """Ten tasks of it take longer than the timeout of the test that asks for it."""
    stage = backends.make_stage(plan, layers, device)
    run = stage.run
    stage.run = lambda task, x: time.sleep(0.17) or run(task, x)
    return stage


def test_a_branch_that_breaks_ends_the_other_with_its_error(monkeypatch):
    built = []

    def fail_in_the_other_branch(plan, layers, device, *shelf):
        stage = backends.make_stage(plan, layers, device)
        built.append(stage)
        if len(built) == 3:  # the unconditional branch's first
            stage.embed = lambda task, inputs, passing: 1 / 0

        return stage

    before = set(threading.enumerate())
    plan = make_plan("dualparal", "parallel.cfg=split", num_stages=2)
    backend = partial(ThreadBackend, make_stage=fail_in_the_other_branch)
    with pytest.raises(ZeroDivisionError):
        Generator(plan, open_backend=backend).latents()
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("layout", [["parallel.cfg=split"], ["parallel.devices=1"]])
def test_stages_of_any_layout_hold_no_keys_and_values_in_the_end(layout):
    plan = make_plan("dualparal", *layout, "parallel.backend=ray", num_stages=2)
    backend = ThreadBackend(plan)
    Generator(plan, open_backend=lambda *plan: backend).latents()
    assert [stage.counters().cache_bytes for stage in backend.chains[0].stages] == [0] * (
        plan.layout.num_devices
    )


def test_a_reader_who_stops_reading_stops_admission():
    plan = make_plan("dualparal", frames=4 * 60 + 1, num_stages=2)
    backend = ThreadBackend(plan)
    blocks = Generator(plan, open_backend=lambda *plan: backend).blocks()
    first = next(blocks)
    counters = backend.chains[0].stages[0].counters
    seen = []
    for _ in range(20):  # until nothing moves any more
        time.sleep(0.1)
        seen.append(counters().admitted)
    assert seen[-1] == seen[-5]
    assert seen[-1].finished - seen[-1].taken == 2  # a burst of one, and one more
    assert seen[-1].begun <= seen[-1].finished + plan.schedule.max_inflight
    rest = list(blocks)
    assert [block.block for block in (first, *rest)] == list(range(plan.schedule.num_blocks))


def test_a_chain_that_waits_for_its_reader_longer_than_the_timeout_goes_on():
    plan = make_plan("dualparal", frames=49, num_stages=3)
    backend = partial(ThreadBackend, timeout_s=0.6)
    blocks = Generator(plan, open_backend=backend).blocks()
    latents = [next(blocks).latents_BCTHW]
    time.sleep(2.0)
    latents += [block.latents_BCTHW for block in blocks]
    assert torch.equal(torch.cat(latents, dim=2), Generator(plan).latents())


def test_an_error_in_a_stage_ends_all_stages_with_the_error_of_one_process(monkeypatch):
    monkeypatch.setattr(backends, "make_stage", make_poisoned_stage)
    with pytest.raises(RenderError, match="hold NaN or infinity") as expected:
        Generator(make_plan("buffer")).latents()
    before = set(threading.enumerate())
    backend = partial(ThreadBackend, make_stage=make_poisoned_stage)
    with pytest.raises(RenderError) as ours:
        Generator(make_plan("buffer", num_stages=3), open_backend=backend).latents()
    assert str(ours.value) == str(expected.value)
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("layout", [[], ["parallel.cfg=split"], ["parallel.devices=1"]])
def test_a_stopped_chain_finishes_what_is_in_flight(layout):
    more = [*layout, "parallel.backend=ray"]
    plan = make_plan("dualparal", *more, frames=4 * 60 + 1, num_stages=2)
    generator = Generator(plan, open_backend=ThreadBackend)
    blocks = generator.blocks()
    latents = [next(blocks).latents_BCTHW]
    generator.stop()
    latents += [block.latents_BCTHW for block in blocks]
    begun = plan.schedule.max_inflight + 3
    assert 1 < len(latents) <= begun


def test_a_stage_that_wakes_after_it_was_replaced_reaches_nobody():
    """It stands still in the middle of a task, as a stopped process does, and hears of nothing."""
    plan = make_plan("dualparal", frames=49, num_stages=3)
    stands, wakes, ends = Event(), Event(), []

    def make_still_stage(plan, layers, device, *rest):
        stage = backends.make_stage(plan, layers, device, *rest)
        run = stage.run

        def run_or_stand(task, x):
            if layers.start and task.number == 9:
                stands.set()
                wakes.wait(60)
            return run(task, x)

        stage.run = run_or_stand
        return stage

    def work(stage):
        try:
            stage.run(plan.schedule)
        except LinkClosed as error:
            ends.append(error)

    old = ThreadBackend(plan, make_stage=make_still_stage)
    sampling = Generator(plan).sampling(old)
    before = old.chain(sampling)
    threads = [threading.Thread(target=work, args=(stage,)) for stage in before.stages]
    for thread in threads:
        thread.start()
    assert stands.wait(30)
    for stage in (before.stages[0], before.stages[2]):  # the fence; the one between cannot hear
        stage.cut()
    done = len(before.last.take(0).tasks)

    stamp = replace(before.stamp, epoch=1)
    after = ThreadBackend(plan, stamp=stamp).chain(sampling)
    came = after.run(plan.schedule)
    ours = [block for _ in range(10) for block in next(came).finished]
    wakes.set()
    ours += [block for step in came for block in step.finished]
    ours = sorted(ours, key=lambda block: block.block)
    latents = torch.cat([block.latents_BCTHW for block in ours], dim=2)
    assert torch.equal(latents, Generator(plan).latents())
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert len(ends) == 3
    assert not before.last.take(0).tasks, f"{done} tasks were done before the fence"


def test_a_stage_that_is_cut_off_keeps_nobody_waiting_for_a_mark():
    plan = make_plan("dualparal", num_stages=2)
    backend = ThreadBackend(plan)
    chain = backend.chain(Generator(plan).sampling(backend))
    first, last, ends = *chain.stages, []

    def collect():
        with pytest.raises(LinkClosed, match="does not come any more"):
            last.collect(1, (), 20.0)
        ends.append(time.monotonic())

    def ask():
        assert first.ask_mark(0, 20.0) is None
        ends.append(time.monotonic())

    threads = [threading.Thread(target=work, daemon=True) for work in (collect, ask)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    start = time.monotonic()
    for stage in chain.stages:
        stage.cut()
    for thread in threads:
        thread.join(30)
    assert max(ends) - start < 5
    assert len(ends) == 2
    chain._meeting.close()


def test_a_stage_that_is_cut_off_while_it_joins_joins_nothing(monkeypatch):
    plan = make_plan("dualparal", num_stages=2)
    stages, opened = [], []

    def make_stage():
        stages.append(StageActor())
        return stages[-1]

    def open_and_cut(spec):
        opened.append(spec.name)
        threading.Thread(target=stages[0].cut, daemon=True).start()
        assert wait_until(lambda: stages[0].loop._closed, 20)
        return open_sender(spec)

    monkeypatch.setattr(loop, "open_sender", open_and_cut)
    monkeypatch.setattr(thread_chain, "StageActor", make_stage)
    backend = ThreadBackend(plan)
    with pytest.raises(LinkClosed, match="was cut off"):
        backend.chain(Generator(plan).sampling(backend))
    assert len(opened) == 1
