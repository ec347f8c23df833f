"""Guidance whose branches have stages of their own gives what it gives through the same stages."""

from functools import cache, partial

import pytest
import torch
from thread_chain import ThreadBackend
from tiny_blocks import POLICIES, overrides, shallow

from longreel.jobs.render import plan_render
from longreel.parallel.chain import LocalChain
from longreel.pipeline import backend as backends
from longreel.pipeline.backend import LocalBackend
from longreel.pipeline.generator import Generator
from longreel.pipeline.plan import describe

GUIDED = "sampling.guidance_mode=sequential"  # the few-step policies have none of their own
INTERVAL = ("sampling.guidance_from=0.95", "sampling.guidance_to=0.5")


pytestmark = pytest.mark.usefixtures("tiny_archs")


def make_plan(policy, *more, frames=33, steps=5):
    settings = overrides(policy, shallow(policy), GUIDED, *more, steps=steps)
    return plan_render("a cat", frames=frames, seed=3, overrides=settings)


@cache
def latents(policy, *more):
    return Generator(make_plan(policy, *more, frames=25, steps=3)).latents()


@pytest.mark.parametrize(
    ("policy", "dtype", "count"),
    [(policy, "float32", 3) for policy in POLICIES]
    + [(policy, "float32", 1) for policy in ("whole", "dualparal-grouped", "causal")]
    + [(policy, "bfloat16", 3) for policy in ("dualparal", "forcing", "rolling")],
)
def test_branches_on_stages_of_their_own_give_the_bits_of_shared_ones(policy, dtype, count):
    more = () if dtype == "float32" else (f"model.dtype={dtype}",)
    expected = latents(policy, *more)
    assert expected.std() > 0.1
    split = latents(policy, "parallel.cfg=split", *more, f"parallel.num_stages={count}")
    assert torch.equal(split, expected)


@pytest.mark.parametrize("policy", ["buffer", "forcing", "dualparal", "causal"])
def test_steps_that_are_not_guided_pass_the_other_branch_by(policy):
    expected = latents(policy, *INTERVAL)
    assert not torch.equal(expected, latents(policy))
    ours = latents(policy, *INTERVAL, "parallel.cfg=split", "parallel.num_stages=2")
    assert torch.equal(ours, expected)


STALE = ("attention.builder=stale", "attention.tile=16", "attention.dense_steps=0",
         "attention.refresh=3", "blocks.right=0", "sampling.guidance_to=0.8")  # fmt: skip


@pytest.mark.parametrize("backend", [LocalBackend, ThreadBackend])
def test_a_branch_that_is_passed_by_keeps_nothing_of_finished_blocks(backend):
    """Each block's last step is not guided, and its attention is kept from the steps before."""
    more = (*STALE, "parallel.cfg=split", "parallel.num_stages=2")
    ours = make_plan("dualparal-grouped", *more, frames=25, steps=4)
    opened = backend(ours)
    chain = opened.chain(Generator(ours).sampling(opened))
    each = held_bytes(chain)
    most = 0
    for _ in chain.run(ours.schedule):
        most = max(most, *(held() for held in each))
    assert most > 0
    assert [held() for held in each] == [0, 0, 0, 0]


def held_bytes(chain):
    """What tells it of each stage; the chain itself lets go of them in the end."""
    if isinstance(chain, LocalChain):
        return [stage.cache_bytes for stage in (*chain._stages, *chain._unconditional)]
    return [partial(told, actor) for actor in chain.stages]


def told(actor):
    return actor.counters().cache_bytes


@pytest.mark.parametrize("policy", ["dualparal-grouped", "buffer", "rolling"])
def test_one_batch_of_two_differs_by_rounding_alone(policy):
    ours = latents(policy, "parallel.cfg=split", "parallel.num_stages=3")
    batched = latents(policy, "sampling.guidance_mode=batched")
    torch.testing.assert_close(ours, batched, atol=1e-4, rtol=0.0)  # other GEMM shapes


def test_each_branch_reads_its_own_text_and_the_same_latents(monkeypatch):
    seen = {}

    class Watched(backends.Stage):
        def embed(self, task, inputs, passing):
            (text_BSD,) = inputs.texts_BSD
            seen.setdefault(id(self), []).append((task.number, inputs.latents_BCTHW, text_BSD))
            return super().embed(task, inputs, passing)

    monkeypatch.setattr(backends, "Stage", Watched)
    latents("dualparal", "parallel.cfg=split", "parallel.num_stages=2")
    conditional, other = seen.values()
    for (number, ours, text), (same_number, theirs, negative) in zip(
        conditional, other, strict=True
    ):
        assert number == same_number
        assert torch.equal(ours, theirs)
        assert not torch.equal(text, negative)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["sampling.guidance=1"], r"sampling\.guidance=1 guides no step.*set parallel\.cfg=batch"),
        (["sampling.guidance_mode=none"], r"guidance_mode=none guides no step, so half of the"),
        (
            ["sampling.guidance_from=0.001", "sampling.guidance_to=0.0"],
            r"guidance=4 from level 0\.001 to 0 guides no step",
        ),
        (["sampling.guidance_mode=batched"], r"both branches into one forward; set .*=sequential"),
    ],
)
def test_without_two_branches_there_is_nothing_to_split(settings, words):
    with pytest.raises(ValueError, match=r"^parallel\.cfg=split gives the .*" + words):
        make_plan("dualparal", "parallel.cfg=split", *settings)


def test_a_distilled_model_is_refused_by_its_preset():
    with pytest.raises(ValueError, match=r"guidance_mode=none guides no step"):
        plan_render("a cat", preset="self-forcing-1.3b", overrides=["parallel.cfg=split"])


def test_the_plan_counts_devices_and_weights_of_both_branches():
    one, two = (
        make_plan("dualparal", f"parallel.cfg={cfg}", "parallel.backend=ray")
        for cfg in ("batch", "split")
    )
    name, copies = "transformer", one.weights_bytes["transformer"]
    assert two.weights_bytes[f"{name} (twice)"] == 2 * copies
    lines = dict(line.split(maxsplit=1) for line in describe(two).splitlines())
    assert lines["blocks"] == "3 (dualparal), 1 stage for each branch of guidance (ray)"
    assert lines["device"] == "2 x auto, float32"


def test_two_devices_take_actors_unless_it_is_said():
    config = [one for one in overrides("dualparal", GUIDED) if "backend" not in one]
    found = {
        cfg: plan_render("a cat", frames=33, overrides=[*config, f"parallel.cfg={cfg}"]).backend
        for cfg in ("batch", "split")
    }
    assert found == {"batch": "local", "split": "ray"}
