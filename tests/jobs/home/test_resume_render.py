"""A render that was hurt or left goes on to the same video, and people are told what was wrong."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import tiny_pipeline
import torch
from command import longreel
from tiny_blocks import ARCHS, overrides

from longreel.jobs.home.attempt import Attempt
from longreel.jobs.home.folder import RenderFolder
from longreel.jobs.home.home import Home
from longreel.jobs.home.journal import JournalReader
from longreel.jobs.home.latents import KeptLatents
from longreel.jobs.home.manifest import write_manifest
from longreel.jobs.home.record import RenderRun
from longreel.jobs.render import plan_render
from longreel.models import arch as archs
from longreel.models.vae_build import random_vae
from longreel.pipeline import backend as backends

OLD = Path(__file__).parents[2] / "data" / "render-format-1"


class Killed(BaseException):
    """What no code of ours catches."""


pytestmark = pytest.mark.usefixtures("tiny_archs")


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


def plan(policy="causal", *more, frames=41, **request):
    settings = overrides(policy, "model.device=cpu", "checkpoint.every_s=0", *more)
    return plan_render("a cat", preset="tiny", frames=frames, seed=3, overrides=settings, **request)


def killed_at(render, task):
    def report(what, done, total, note=""):
        if (what, done) == ("denoise", task):
            raise Killed

    with pytest.raises(Killed):
        RenderRun(render, report).run()
    return render


def digests(render):
    return [segment.digest for segment in render.segments()]


@pytest.fixture(scope="module")
def known():
    with pytest.MonkeyPatch.context() as patch:
        for name, arch in ARCHS.items():
            patch.setitem(archs.ARCHS, name, arch)
        yield


@pytest.fixture(scope="module")
def undisturbed(known, tmp_path_factory):
    """What `plan()` makes where nobody hurts it."""
    render = Home(tmp_path_factory.mktemp("undisturbed")).create(plan())
    assert RenderRun(render).run().state == "done"
    return render


@pytest.fixture(scope="module")
def endless(known, tmp_path_factory):
    """One that was killed and begins anew: its checkpoint is as old as it is."""
    render = Home(tmp_path_factory.mktemp("endless")).create(
        plan("causal", "checkpoint.every_s=600", frames=0)
    )
    return killed_at(render, 20)


def first_step(render):
    """Of an attempt that goes on to the end: which of all steps of all blocks."""
    seen = []
    status = RenderRun(
        render, lambda what, done, total, note="": seen.append(done) if what == "denoise" else None
    ).run()
    assert status.state == "done"
    return seen[1]


def test_an_old_folder_is_gone_on_with(undisturbed, tmp_path):
    shutil.copytree(OLD, tmp_path / "old")
    render = RenderFolder(tmp_path / "old")
    assert render.status().state == "paused"
    before = render.segments()
    assert first_step(render) > 8
    assert digests(render)[: len(before)] == [segment.digest for segment in before]
    # it was written on another kind of CPU, whose last bits are others, and files show which
    kept = [KeptLatents(one.segments(), 4) for one in (render, undisturbed)]
    ours, theirs = (one.read(one.count(before[-1].stop), one.count(41)) for one in kept)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_damaged_checkpoint_is_told_of_and_the_one_before_it_used(home, undisturbed, caplog):
    render = killed_at(home.create(plan()), 13)
    newest, before = sorted((render.path / "checkpoints").glob("0*"))[::-1][:2]
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 4
    newest.write_bytes(data)
    assert first_step(home.open(render.id)) > 1
    assert f"{newest.name} is damaged" in caplog.text
    assert f"going on from checkpoint {before.name}" in caplog.text
    assert digests(render) == digests(undisturbed)


def test_checkpoints_go_on_where_those_before_them_are_damaged_meanwhile(home, undisturbed):
    render = home.create(plan())

    def report(what, done, total, note=""):
        if (what, done) == ("denoise", 8):
            for path in (render.path / "checkpoints").glob("0*"):
                path.write_bytes(b"\xff" * 100)
        if (what, done) == ("denoise", 14):
            raise Killed

    with pytest.raises(Killed):
        RenderRun(render, report).run()
    assert first_step(home.open(render.id)) > 8
    assert digests(render) == digests(undisturbed)


@pytest.mark.parametrize("frames", [0, 41])
def test_what_is_whole_but_for_the_word_keeps_no_checkpoint_and_is_not_made_again(
    frames, home, monkeypatch
):
    render, note = home.create(plan(frames=frames)), Attempt.note

    def report(what, done, total, note=""):
        if what == "denoise" and done == 12 and not frames:
            run.finish()

    def killed_at_its_end(attempt, event, **facts):
        if event == "done":
            raise Killed
        note(attempt, event, **facts)

    run = RenderRun(render, report)
    with monkeypatch.context() as patch:
        patch.setattr(Attempt, "note", killed_at_its_end)
        with pytest.raises(Killed):
            run.run()
    assert not (render.path / "checkpoints").exists()
    heard = []
    status = RenderRun(home.open(render.id), lambda *said: heard.append(said)).run()
    assert (status.state, heard) == ("done", [])


@pytest.mark.parametrize("tell", [partial(RenderRun.set_prompt, prompt="a dog"), RenderRun.finish])
def test_what_is_final_is_as_it_was_whatever_is_told_while_it_is_made_again(
    endless, tmp_path, tell
):
    render = RenderFolder(shutil.copytree(endless.path, tmp_path / endless.id))
    final = render.segments()[-1].blocks[1]
    assert final > 2
    told = []

    def report(what, done, total, note=""):
        if what == "denoise" and done == 2 and not told:
            told.append(tell(run))
        if what == "denoise" and done == 30:
            run.stop()

    run = RenderRun(render, report)
    run.run()
    (event,) = (
        e
        for e in JournalReader(render.path / "journal").poll()
        if e["event"] in ("prompt", "finishing")
    )
    assert event.get("block", event.get("blocks")) == final
    assert render.segments()[-1].blocks[1] >= final


def test_the_prompt_that_was_told_last_is_the_last(home):
    """What was told before a process was killed was for blocks that had not begun by then."""
    render = home.create(plan("causal", "checkpoint.every_s=600", frames=0))

    def report(what, done, total, note=""):
        if what == "denoise" and done == 10:
            RenderRun.set_prompt(first, "a dog")
        if what == "denoise" and done == 11:
            raise Killed

    first = RenderRun(render, report)
    with pytest.raises(Killed):
        first.run()

    def again(what, done, total, note=""):
        if what == "denoise" and done == 2:
            second.set_prompt("a bird")
            second.stop()

    second = RenderRun(render, again)
    second.run()
    events = JournalReader(render.path / "journal").poll()
    dog, bird = (event["block"] for event in events if event["event"] == "prompt")
    assert bird >= dog > 0


def test_other_weights_than_it_was_begun_with_are_refused(home, tmp_path, monkeypatch):
    arch = tiny_pipeline.ARCHS["test-t2v"]
    monkeypatch.setitem(archs.ARCHS, "test-t2v", arch)
    tiny_pipeline.write_checkpoint(tmp_path / "weights", arch)
    sizes = ["video.height=32", "video.width=48", "sampling.steps=3", "model.text_cache="]
    where = ["model.arch=test-t2v", f"model.checkpoint={tmp_path / 'weights'}"]
    render = home.create(plan_render("a cat", frames=9, overrides=[*sizes, *where]))
    killed_at(render, 1)
    random_vae(arch.vae, seed=2).save_pretrained(tmp_path / "weights" / "vae")
    with pytest.raises(
        ValueError, match=f"the vae is not the one that render {render.id} was begun with"
    ):
        RenderRun(home.open(render.id)).run()
    status = render.status()
    assert (status.state, status.frames_done) == ("failed", 0)
    random_vae(arch.vae, seed=1).save_pretrained(tmp_path / "weights" / "vae")
    held = render.manifest
    made_otherwise = {part: name[::-1] for part, name in held.weights.items() if part != "scheme"}
    for scheme in ({}, {"scheme": "of another version"}):
        write_manifest(render.path, replace(held, weights=made_otherwise | scheme))
        killed_at(home.open(render.id), 2)
    write_manifest(render.path, held)
    assert RenderRun(home.open(render.id)).run().state == "done"


def test_a_prompt_that_was_set_while_it_ran_is_known_to_whoever_goes_on(home, undisturbed):
    def set_at(run, task, killed_at):
        def report(what, done, total, note=""):
            if (what, done) == ("denoise", task):
                run.set_prompt("a dog")
            if (what, done) == ("denoise", killed_at):
                raise Killed

        run._report = report
        return run

    truth = home.create(plan())
    set_at(RenderRun(truth), 6, None).run()
    assert digests(truth) != digests(undisturbed)
    for when in (7, 11, 16):
        render = home.create(plan())
        with pytest.raises(Killed):
            set_at(RenderRun(render), 6, when).run()
        assert RenderRun(home.open(render.id)).run().state == "done"
        assert digests(render) == digests(truth)


def test_less_memory_is_tried_before_a_render_is_given_up(home, monkeypatch, caplog):
    build = backends.make_stage

    def short_of_memory(*asked):
        stage = build(*asked)
        run = stage.run

        def checked(task, x):
            if x.state.tokens_BLD.shape[0] > 1 and task.number > 6:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return run(task, x)

        stage.run = checked
        return stage

    guided = ["sampling.guidance_mode=batched"]
    monkeypatch.setattr(backends, "make_stage", short_of_memory)
    render = home.create(plan("causal", *guided))
    assert RenderRun(render).run().state == "done"
    assert render.request.config.sampling.guidance_mode == "sequential"
    assert "going on with sampling.guidance_mode=sequential" in caplog.text
    assert len(list(render.frames())) == 41


def test_a_render_without_memory_ends_with_the_reason_and_the_way_on(home, monkeypatch):
    def none(*asked):
        raise torch.OutOfMemoryError("CUDA out of memory: tried 1 GiB")

    monkeypatch.setattr(backends, "make_stage", none)
    render = home.create(plan())
    with pytest.raises(torch.OutOfMemoryError):
        RenderRun(render).run()
    assert render.status().state == "failed"
    reason = render.status().reason
    assert "tried 1 GiB" in reason
    # the command that it names goes on with it
    (command,) = re.findall(r"`longreel (resume .*)` goes on from frame 0", reason)
    monkeypatch.undo()
    for name, arch in ARCHS.items():
        monkeypatch.setitem(archs.ARCHS, name, arch)
    output = home.path / "cat.mp4"
    assert longreel(*shlex.split(command), "-o", output).code == 0
    assert output.exists()


def test_the_command_line_keeps_lists_goes_on_with_and_removes_renders(tmp_path, monkeypatch):
    place, output = tmp_path / "home", tmp_path / "cat.mp4"
    settings = overrides("causal", "model.device=cpu", "checkpoint.every_s=0", "video.frames=33")
    asked = [
        "render",
        "a cat",
        "--preset",
        "tiny",
        "-o",
        output,
        "--home",
        place,
        "--seed",
        3,
        *settings,
    ]
    assert longreel(*asked).code == 0
    whole = output.read_bytes()
    output.unlink()
    (one,) = longreel("renders", "--home", place, "--json").out.splitlines()
    assert json.loads(one)["state"] == "done"
    render = killed_at(Home(place).create(plan(frames=33), output), 9)
    lines = longreel("renders", "--home", place).out.splitlines()
    assert [line.split()[1] for line in lines] == ["paused", "done"]
    refused = longreel("resume", render.id, "--home", place, "sampling.steps=3")
    assert "sampling.steps=3 would change the frames to come" in refused.message
    assert longreel("resume", render.id, "--home", place, "parallel.num_stages=2").code == 0
    assert output.read_bytes() == whole
    manifest = shutil.copytree(render.path, place / "renders" / "20261127-b") / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-20])
    pruned = longreel("renders", "--home", place, "--prune", "--yes")
    assert (pruned.code, pruned.err.count("\n")) == (0, 1)
    assert pruned.err.startswith(f"left out: {manifest} is damaged")
    assert Home(place).renders() == []
    assert Home(place).names() == ["20261127-b"]
