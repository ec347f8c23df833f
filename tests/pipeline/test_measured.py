"""Layers are split by what was measured; what cannot be used of it never stops a render."""

import json
import logging

import pytest
import torch
from tiny_blocks import overrides

from longreel.jobs.render import plan_render
from longreel.pipeline import measured
from longreel.pipeline.cost import Seconds
from longreel.pipeline.generator import Generator
from longreel.pipeline.kinds import commonest_task
from longreel.pipeline.measured import find, keep, make_case
from longreel.pipeline.plan import describe
from longreel.pipeline.slices import find_measured, slices

CPU = torch.device("cpu")
NUM_STAGES = 2
HEAVY_HEAD = Seconds(token=1.0, head_token=2.0)  # the head takes as long as two of the five layers


pytestmark = pytest.mark.usefixtures("tiny_archs")


@pytest.fixture
def make(tmp_path):
    def make(*more, policy="dualparal", frames=57):
        settings = overrides(
            policy,
            f"parallel.num_stages={NUM_STAGES}",
            f"parallel.calibration={tmp_path / 'folder'}",
            *more,
        )
        return plan_render("a cat", frames=frames, seed=3, overrides=settings)

    return make


def keep_for(plan, seconds=HEAVY_HEAD):
    path = keep(
        plan.config.parallel.calibration, make_case(plan.config, plan.schedule, CPU), seconds
    )
    assert path is not None
    return path


def counts(plan):
    return [len(layers) for layers in slices(plan, find_measured(plan, CPU))]


def test_the_split_follows_what_was_measured(make):
    plan = make()
    assert counts(plan) == [3, 2]  # by products: embedding and head are next to nothing
    keep_for(plan)
    assert counts(plan) == [4, 1]  # 4, and 1 with a head of 2
    keep_for(plan, Seconds(token=1.0, embed_token=4.0))
    assert counts(plan) == [1, 4]


def test_a_split_by_measured_times_changes_no_bit(make, caplog):
    plan = make(frames=25)
    expected = Generator(plan).latents()
    keep_for(plan)
    assert counts(plan) == [4, 1]
    with caplog.at_level(logging.WARNING, logger="longreel"):
        assert torch.equal(Generator(plan).latents(), expected)
    assert not caplog.records


@pytest.mark.parametrize(
    "more",
    [
        {"policy": "causal"},
        {"more": ["video.height=32"]},
        {"more": ["video.width=16"]},
        {"more": ["model.dtype=bfloat16"]},
        {"more": ["blocks.left=1"]},
        {"more": ["blocks.right=1"]},
    ],
    ids=str,
)
def test_what_was_measured_of_another_model_size_type_or_window_is_not_used(make, more):
    keep_for(make())
    other = make(*more.get("more", ()), policy=more.get("policy", "dualparal"))
    assert find_measured(other, CPU) is None
    assert find_measured(make(), CPU) == HEAVY_HEAD


@pytest.mark.parametrize(("name", "value"), [("_name", "H200"), ("_torch_version", "9.9")])
def test_another_device_and_another_torch_are_measured_anew(make, monkeypatch, name, value):
    plan = make()
    keep_for(plan)
    monkeypatch.setattr(measured, name, lambda *_: value)
    assert find_measured(plan, CPU) is None


def test_a_longer_video_of_the_same_windows_uses_the_same_measurement(make):
    keep_for(make())
    assert find_measured(make(frames=113), CPU) == HEAVY_HEAD
    assert find_measured(make("video.frames=0", frames=None), CPU) == HEAVY_HEAD


def test_the_commonest_window_is_the_one_most_tasks_have(make):
    tasks = list(make().schedule.tasks())
    shapes = [(t.num_latents, sum(entry.num_latents for entry in t.reads)) for t in tasks]
    found = commonest_task(make().schedule)
    shape = found.num_latents, sum(entry.num_latents for entry in found.reads)
    assert shapes.count(shape) == max(map(shapes.count, shapes))


def corrupt(change):
    def rewrite(path):
        held = json.loads(path.read_text())
        change(held)
        path.write_text(json.dumps(held))

    return rewrite


BROKEN = {
    "empty": lambda path: path.write_text(""),
    "cut": lambda path: path.write_text(path.read_text()[:-40]),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "a list": lambda path: path.write_text("[1]"),
    "another case": corrupt(lambda held: held["case"].update(torch="2.0")),
    "no seconds": corrupt(lambda held: held.pop("seconds")),
    "a field less": corrupt(lambda held: held["seconds"].pop("head_token")),
    "words": corrupt(lambda held: held["seconds"].update(token="fast")),
    "not finite": corrupt(lambda held: held["seconds"].update(head_token=float("nan"))),
    "negative": corrupt(lambda held: held["seconds"].update(embed_token=-1.0)),
    "no layer": corrupt(lambda held: held["seconds"].update(token=0.0)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_file_that_cannot_be_used_is_named(make, caplog, how):
    plan = make()
    path = keep_for(plan)
    BROKEN[how](path)
    with caplog.at_level(logging.WARNING, logger="longreel"):
        assert counts(plan) == [3, 2]
    assert str(path) in caplog.text
    assert "layers are split by an estimate; remove it, or measure again" in caplog.text


@pytest.mark.parametrize("how", ["cut", "a folder"])
def test_a_render_goes_on_without_the_file(make, caplog, how):
    plan = make(frames=17)
    expected = Generator(make("parallel.calibration=", frames=17)).latents()
    path = keep_for(plan)
    BROKEN[how](path)
    with caplog.at_level(logging.WARNING, logger="longreel"):
        assert torch.equal(Generator(plan).latents(), expected)
    assert str(path) in caplog.text


def test_a_folder_that_takes_no_file_is_named_and_nothing_fails(make, caplog, tmp_path):
    (tmp_path / "folder").write_text("a file")
    plan = make()
    case = make_case(plan.config, plan.schedule, CPU)
    assert keep(plan.config.parallel.calibration, case, HEAVY_HEAD) is None
    assert "cannot be written, so it is not kept" in caplog.text


def test_what_is_kept_comes_back_to_the_bit_and_leaves_no_other_file(make, tmp_path):
    seconds = Seconds(token=0.1 + 0.2, pair=1e-300, head_token=1 / 3, decode_latent=7)
    plan = make()
    path = keep_for(plan, seconds)
    assert find(str(path.parent), make_case(plan.config, plan.schedule, CPU)) == seconds
    assert list(path.parent.iterdir()) == [path]


def test_the_dry_run_says_how_layers_are_split(make):
    assert "layers   3, 2, split as estimated (`longreel simulate --calibrate`" in describe(make())
    keep_for(make())
    assert "layers   4, 1, split as measured on this device" in describe(make())
    assert "layers   3, 2, split as estimated" in describe(make("parallel.calibration="))
    assert "layers   5, on one stage" in describe(make("parallel.num_stages=1"))
    far = make("parallel.backend=ray", "parallel.address=head:6379")
    assert "split as estimated, or as measured on the cluster's devices" in describe(far)
