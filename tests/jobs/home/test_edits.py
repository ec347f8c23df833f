"""A finished render goes on, or is made anew in its midst: the rest stays, byte for byte."""

import io
import shutil

import av
import numpy as np
import pytest
import tiny_vae
from finished import EDITS, FRAMES, digests, frames_of, make, plan
from thread_chain import ThreadBackend
from tiny_blocks import ARCHS, POLICIES

from longreel.jobs.home.edits import extend, redo
from longreel.jobs.home.folder import RenderFolder
from longreel.jobs.home.home import Home
from longreel.jobs.home.journal import JournalReader, JournalWriter
from longreel.jobs.home.latents import KeptLatents
from longreel.jobs.home.lock import Taken
from longreel.jobs.home.record import RenderRun
from longreel.models.vae import to_uint8
from longreel.models.vae_build import random_vae

MORE = 16
SOON = ["dualparal-grouped", "causal"]
LATER = [name for name in POLICIES if name not in ("whole", *SOON)] + ["causal-recache"]
EACH = [*SOON, *(pytest.param(name, marks=pytest.mark.slow) for name in LATER)]


pytestmark = pytest.mark.usefixtures("tiny_archs")


def test_latents_stay_with_their_frames_where_what_follows_is_decoded_anew(finished, tmp_path):
    """The segment behind a section is one, though a window reads but a part of its latents (two
    of three here); so whatever comes later can be made from it."""
    for section in ((16, 20), (24, 28)):
        render = finished.copy(tmp_path, "dualparal")
        redo(render, *section)
        make(render)
        for segment in render.segments():
            kept = KeptLatents([segment], 4)
            kept.read(kept.count(segment.first), kept.count(segment.stop))
    extend(render, 4)
    make(render)
    redo(render, render.segments()[-1].first, render.segments()[-1].stop)
    make(render)


def test_a_prompt_that_comes_too_late_for_a_section_changes_nothing_behind_it(finished, tmp_path):
    render = finished.copy(tmp_path, "dualparal")
    edit = redo(render, 0, 8)

    def report(what, done, total, note=""):
        if what == "denoise" and done == total:
            run.set_prompt("a dog")

    run = RenderRun(render, report)
    assert run.run().state == "done"
    events = JournalReader(render.path / "journal").poll()
    (told,) = (event for event in events if event["event"] == "prompt")
    ours = render.plan
    assert ours.schedule.bounds(told["block"])[0] >= ours.request.section.stop
    assert {text for _, text in render.prompts(ours)} == {"a cat"}
    assert edit.section.stop < ours.latents_shape[1]


def threads(plan, given_up, **told):
    """Stages that work at once, as Ray's actors do."""
    return ThreadBackend(plan)


STAGES = {"changes": {"parallel.num_stages": 3}, "open_backend": threads}


def video_of(render):
    """What a player is given, and what it makes of it: times and frames."""
    data = render.init.read_bytes() + b"".join(s.path.read_bytes() for s in render.segments())
    with av.open(io.BytesIO(data)) as container:
        shown = [(frame.pts, frame.to_ndarray(format="rgb24")) for frame in container.decode()]
    return [pts for pts, _ in shown], np.stack([frame for _, frame in shown])


@pytest.mark.parametrize("policy", EACH)
def test_an_extended_video_begins_with_the_bytes_of_the_old_one(finished, tmp_path, policy):
    render, again = (finished.copy(tmp_path, policy) for _ in range(2))
    before = digests(render)
    extend(render, MORE)
    after = make(render)
    assert after[: len(before)] == before
    times, _ = video_of(render)
    assert times == list(range(FRAMES + MORE))
    assert (render.status().frames, render.status().frames_done) == (FRAMES + MORE,) * 2
    extend(again, MORE)
    assert make(again, **STAGES) == after


@pytest.mark.parametrize("policy", EACH)
def test_a_section_made_anew_leaves_every_other_frame_as_it_was(finished, tmp_path, policy):
    render, again = (finished.copy(tmp_path, policy) for _ in range(2))
    _, before = video_of(render)
    edit = redo(render, 16, 18)
    assert edit.first <= 16 < 18 <= edit.fade < edit.stop < FRAMES
    assert np.array_equal(video_of(render)[1], before), "the old video is there until it is done"
    after = make(render)
    times, frames = video_of(render)
    assert times == list(range(FRAMES))
    assert np.array_equal(frames[: edit.first], before[: edit.first])
    assert np.array_equal(frames[edit.stop :], before[edit.stop :])
    differs = (frames != before).any(axis=(1, 2, 3))
    assert differs[edit.first : edit.fade].all()
    redo(again, 16, 18)
    assert make(again, **STAGES) == after


def test_the_beginning_of_a_video_is_made_anew_as_any_other_section(finished, tmp_path):
    render = finished.copy(tmp_path, "dualparal-grouped")
    before = frames_of(render)
    edit = redo(render, 0, 1)
    make(render)
    differs = (frames_of(render) != before).any(axis=(1, 2, 3))
    assert edit.first == 0
    assert differs[: edit.fade].all()
    assert not differs[edit.stop :].any()


def test_each_redo_of_a_section_is_another(finished, tmp_path):
    render = finished.copy(tmp_path, "dualparal-grouped")
    seen = [digests(render)]
    for _ in range(2):
        redo(render, 16, 18)
        seen.append(make(render))
    first, second, third = ({*one} for one in seen)
    assert first & second == first & third == second & third  # what stays
    assert 0 < len(first & second) < len(first)
    kept = {segment.path for segment in render.segments()}
    redo(render, 0, 1)  # removes what the redo before it replaced
    assert set((render.path / "segments").iterdir()) == kept


class Killed(BaseException):
    """What no code of ours catches."""


def killed(render, what, at):
    def report(now, done, total, note=""):
        if now == what and done >= at:
            raise Killed

    with pytest.raises(Killed):
        RenderRun(render, report, changes={"checkpoint.every_s": 0.0}).run()
    return render


INTERRUPTED = [
    (policy, edit, what)
    for policy in ("dualparal-grouped", "forcing", "causal")
    for edit in ("extend", "redo")
    for what in ("denoise", "decode")
]
NOW = [("dualparal-grouped", "redo", "decode"), ("causal", "extend", "denoise")]


@pytest.mark.parametrize(
    ("policy", "edit", "what"),
    [pytest.param(*case, marks=[] if case in NOW else pytest.mark.slow) for case in INTERRUPTED],
)
def test_an_edit_that_was_interrupted_goes_on_to_the_same_bytes(
    finished, tmp_path, policy, edit, what
):
    render = finished.copy(tmp_path, policy)
    before = digests(render)
    asked = EDITS[edit](render)
    killed(render, what, {"denoise": 4, "decode": asked.first + 12}[what])
    assert digests(render)[: len(before)] == before
    assert render.status().state == "paused"
    assert render.status().frames_done < render.status().frames
    with pytest.raises(ValueError, match=r"is paused, .*`longreel resume .*` goes on"):
        redo(render, 0, 4)
    if what == "decode" and policy == "causal":  # from the beginning of the edit, that is
        shutil.rmtree(render.path / "checkpoints")
    assert make(RenderFolder(render.path)) == finished.edited(policy, edit)


@pytest.mark.parametrize("what", ["extend", "redo"])
def test_an_edit_that_is_dropped_has_never_been(finished, tmp_path, what):
    render = finished.copy(tmp_path, "dualparal-grouped")
    before, journal = digests(render), (render.path / "journal").read_bytes()
    files = {path for path in render.path.rglob("*") if path.is_file()}
    edit = EDITS[what](render)
    reader = RenderFolder(render.path)
    killed(render, "decode", edit.first + 12)
    assert (len(digests(reader)) > len(before)) == (what == "extend")
    assert len([*render.path.glob("segments/r1-*")]) > 0
    with render.attempt(), pytest.raises(Taken, match="is being made by process"):
        RenderFolder(render.path).drop()
    render.drop()
    status = render.status()
    assert (status.state, status.reason, status.frames, status.frames_done) == (
        "done", "", FRAMES, FRAMES,
    )  # fmt: skip
    assert digests(render) == digests(reader) == before
    assert {path for path in render.path.rglob("*") if path.is_file()} == files
    assert (render.path / "journal").read_bytes().startswith(journal)
    with pytest.raises(ValueError, match="is done and has no unfinished edit, so there is nothing"):
        render.drop()
    again = EDITS["redo"](RenderFolder(render.path))
    assert again.section.revision == 2, "what is asked for anew is another"
    assert make(render) != finished.edited("dualparal-grouped", "redo")


def decoded_at_once(render, policy):
    """diffusers' decoding of all latents that the folder keeps, in one go."""
    vae = random_vae(ARCHS["test-blocks"].vae, seed=0)
    latents = KeptLatents(render.segments(), 4)
    latents_BCTHW = latents.read(0, latents.count(render.status().frames))
    return to_uint8(tiny_vae.decode_at_once(vae, latents_BCTHW)).numpy()


def test_frames_are_those_of_all_latents_decoded_at_once(finished, tmp_path):
    """But where what was there is faded in again."""
    # 16 latents a frame: of fewer than 12 the first convolution rounds otherwise, all at once;
    # and more of them than a decoder reaches back, so that it does not begin at the first
    lossless = ["output.format=png", "sampling.steps=1", "video.height=32"]
    render = finished.copy(tmp_path, "dualparal-grouped", *lossless, frames=129)
    assert extend(render, 24).section.first > render.plan.arch.vae.decoder_reach
    make(render)
    old = frames_of(render)
    edit = redo(render, 138, 140)  # of three segments the second
    assert 129 < edit.first < edit.fade < edit.stop
    make(render)
    new, truth = frames_of(render), decoded_at_once(render, "dualparal-grouped")
    assert np.array_equal(new[: edit.fade], truth[: edit.fade])
    share = np.arange(1, edit.stop - edit.fade + 1) / (edit.stop - edit.fade + 1)
    share = share[:, None, None, None]
    faded = (1 - share) * truth[edit.fade : edit.stop] + share * old[edit.fade : edit.stop]
    assert np.array_equal(new[edit.fade : edit.stop], np.rint(faded).astype(np.uint8))


def test_another_prompt_is_read_where_it_is_asked_for_and_nowhere_else(finished, tmp_path):
    render, plain = (
        finished.copy(tmp_path, "causal", prompt_at=((2.0, "a dog"),)) for _ in range(2)
    )
    edit = redo(render, 16, 18, prompt="a fish")
    redo(plain, 16, 18)
    assert make(render) != make(plain)
    section = edit.section
    assert tuple(dict(section.prompts)[i] for i in (section.first, section.stop)) == (
        "a fish",
        "a dog",
    )
    assert [
        text for _, text in extend(render, 24, prompt_at=[(3.0, "a bird")]).section.prompts
    ] == [
        "a cat",
        "a fish",
        "a dog",
        "a bird",
    ]
    make(render)
    assert extend(render, MORE).section.prompts[-1][1] == "a bird"  # goes on


def test_what_cannot_be_edited_is_refused_before_anything_is_made(finished, tmp_path):
    render = finished.copy(tmp_path, "dualparal-grouped")
    journal = (render.path / "journal").read_bytes()
    for ask, said in [
        (lambda: extend(render, 0), r"extend=0 adds no frame"),
        (lambda: extend(render, -4), r"extend=-4 adds no frame"),
        (lambda: extend(render, 6), r"extend=6 comes from no whole number .*; use 4 or 8"),
        (lambda: extend(render, 8, prompt_at=[(0.5, "a dog")]), r"choose times from 2\.5625 s on"),
        (lambda: extend(render, 8, prompt_at=[(60, "a dog")]), r"prompt_at=60 is after the last"),
        (lambda: redo(render, 20, 10), r"redo=20\.\.10 ends before it begins; use redo=10\.\.20"),
        (lambda: redo(render, 20, 20), r"redo=20\.\.20 holds no frame; .* as 21"),
        (lambda: redo(render, 40, 44), r"redo=40\.\.44 is not inside .* frames are 0\.\.41"),
        (lambda: redo(render, -1, 6), r"redo=-1\.\.6 is not inside"),
        (lambda: redo(render, 0, 41), r"touches every segment .*render anew with another seed"),
    ]:
        with pytest.raises(ValueError, match=said):
            ask()
    with render.attempt(), pytest.raises(ValueError, match=r"is running, .*wait for it"):
        extend(render, 8)
    assert (render.path / "journal").read_bytes().startswith(journal)
    whole = finished.copy(tmp_path, "whole", frames=17)
    with pytest.raises(ValueError, match=r"blocks\.policy=whole made render .* in one window"):
        extend(whole, 8)
    queued = Home(tmp_path / "home").create(plan("causal"))
    with pytest.raises(ValueError, match=r"is queued, and only what is finished"):
        extend(queued, 8)


def test_two_processes_do_not_edit_one_render(finished, tmp_path):
    render = finished.copy(tmp_path, "dualparal-grouped")
    with render._lock.held(render.id), pytest.raises(Taken, match="is being made by process"):
        extend(RenderFolder(render.path), 8)


def test_a_render_without_latents_is_refused_with_the_reason(finished, tmp_path):
    """As longreel 0.1 left it: its journal knew nothing of them."""
    render = finished.copy(tmp_path, "dualparal-grouped")
    events = JournalReader(render.path / "journal").poll()
    writer = JournalWriter(render.path / "journal", 1, 0)
    for event in events:
        writer.append(**{k: v for k, v in event.items() if k not in ("latents", "time", "attempt")})
    writer.close()
    with pytest.raises(ValueError, match=r"kept no latents, so .*; render it again with this one"):
        extend(RenderFolder(render.path), 8)


def test_latents_that_were_hurt_end_an_edit_with_the_file_and_leave_the_video(finished, tmp_path):
    render = finished.copy(tmp_path, "dualparal-grouped")
    before = frames_of(render)
    extend(render, 8)
    path = render.segments()[-1].latents_path
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{path.name} is damaged"):
        RenderRun(render).run()
    assert np.array_equal(frames_of(render), before)


@pytest.mark.ray
@pytest.mark.parametrize(
    "policy", ["dualparal-grouped", pytest.param("causal", marks=pytest.mark.slow)]
)
def test_over_ray_an_edit_makes_the_bytes_of_one_process(two_nodes, finished, tmp_path, policy):
    over_ray = {"parallel.backend": "ray", "parallel.num_stages": 2}
    here, there = (finished.copy(tmp_path, policy) for _ in range(2))
    for ask in (lambda one: extend(one, MORE), lambda one: redo(one, 16, 18)):
        ask(here)
        ask(there)
        assert make(there, changes=over_ray) == make(here)
