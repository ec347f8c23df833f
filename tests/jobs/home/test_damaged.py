"""What a disk has done to a render's files is told, made again or refused: no frame is wrong."""

import errno
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from command import longreel
from finished import digests, make, plan

from longreel.jobs.home import lock
from longreel.jobs.home.edits import extend
from longreel.jobs.home.folder import RenderFolder
from longreel.jobs.home.home import Home
from longreel.jobs.home.record import RenderRun

pytestmark = pytest.mark.usefixtures("tiny_archs")


@pytest.fixture
def done(finished, tmp_path):
    """A finished render of its own, in a home."""
    place = tmp_path / "home" / "renders"
    place.mkdir(parents=True)
    return finished.copy(place, "causal")


@pytest.fixture
def written(tmp_path):
    """What `longreel resume` says of it; its file, if there is one."""
    output = tmp_path / "a.mp4"

    def resume(*arguments):
        output.unlink(missing_ok=True)
        home = [] if "--home" in arguments else ["--home", tmp_path / "home"]
        outcome = longreel("resume", *arguments, *home, "-o", output)
        return outcome, output.read_bytes() if output.exists() else None

    return resume


def hurt(path, how):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(data if how == "flip" else data[: len(data) // 2])


@pytest.mark.parametrize(("number", "how"), [(0, "gone"), (1, "flip"), (2, "cut")])
def test_a_segment_of_what_is_gone_on_with_is_told_of_and_made_again(
    number, how, done, tmp_path, caplog
):
    render = Home(tmp_path).create(plan("causal", "checkpoint.every_s=0"))

    def report(what, done, total, note=""):
        if (what, done) == ("denoise", 14):
            run.stop()

    run = RenderRun(render, report)
    assert run.run().state == "paused"
    segment = render.segments()[number]
    hurt(segment.path, how)
    assert make(render) == digests(done)
    said = f"{segment.path.name} is damaged or gone; going on from frame {segment.first},"
    assert said in caplog.text
    assert [segment.read() for segment in render.segments()]


@pytest.mark.parametrize("how", ["gone", "flip", "cut"])
def test_no_file_is_made_of_a_damaged_segment_and_its_frames_can_be_made_anew(how, done, written):
    hurt(done.segments()[1].path, how)
    refused, file = written(done.path.name)
    assert (refused.code, file) == (2, None)
    assert "000001.m4s is " in refused.message
    (way_out,) = re.findall(r"`longreel resume (.*)`", refused.message)
    outcome, file = written(*shlex.split(way_out))
    assert outcome.code == 0
    assert file


def test_what_a_redo_leads_over_to_is_whole_before_it_is_taken_note_of(done, written):
    hurt(done.segments()[2].path, "flip")
    refused, _ = written(done.path.name, "--redo", "9..10")
    assert "000002.m4s is damaged" in refused.message
    assert done.status().state == "done"
    with pytest.raises(ValueError, match=r"put it back .* --home "):
        list(done.frames())


def test_a_render_is_read_from_where_its_name_is_short(done, monkeypatch):
    monkeypatch.chdir(done.path.parent)
    near = RenderFolder(Path(done.path.name))
    assert len(list(near.frames())) == 41
    hurt(near.segments()[0].path, "gone")
    with pytest.raises(ValueError, match=f"--home {done.path.parents[1]} --redo 0"):
        list(near.frames())


def test_what_is_not_finished_says_how_it_is_gone_on_with(done, written):
    render = Home(done.path.parents[1]).create(plan("causal"))
    refused, _ = written(render.id, "--extend", "8")
    (way_out,) = re.findall(r"`longreel resume (.*)` goes on", refused.message)
    assert "--home" in way_out
    assert written(*shlex.split(way_out))[0].code == 0


@pytest.mark.parametrize("how", ["gone", "cut"])
def test_no_file_is_made_without_its_start_which_any_render_like_it_has(how, done, written):
    _, truth = written(done.path.name)
    hurt(done.init, how)
    refused, file = written(done.path.name)
    assert "init.mp4 is " in refused.message
    assert "of another render of the same size" in refused.message
    assert file is None
    other = Home(done.path.parents[1]).create(plan("causal", "blocks.size=1", frames=9))
    make(other)
    shutil.copy(other.init, done.init)
    assert written(done.path.name)[1] == truth


def test_what_a_damaged_journal_had_told_of_is_made_again_and_all_of_it_kept_aside(done, caplog):
    before, journal = digests(done), done.path / "journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    damaged = b"".join([lines[0], lines[1].replace(b'"', b"'", 1), *lines[2:]])
    journal.write_bytes(damaged)
    assert make(RenderFolder(done.path)) == before
    assert f"its last {len(lines) - 1} lines count for nothing" in caplog.text
    assert (done.path / "journal.damaged").read_bytes() == damaged
    # a line that was being written is none that is lost
    journal.write_bytes(b"".join(lines[:2]) + lines[2][:-5])
    caplog.clear()
    assert make(RenderFolder(done.path)) == before
    assert "count for nothing" not in caplog.text


def test_an_edit_that_reads_damaged_latents_is_refused_and_can_be_given_up(done, written):
    _, truth = written(done.path.name)
    before = done.segments()[-1].latents_path
    whole = before.read_bytes()
    hurt(before, "flip")
    with pytest.raises(ValueError, match=r"is damaged: .* --redo 3[0-9]..41`") as at_once:
        extend(done, 8)
    assert done.status().state == "done"  # nothing is noted that could not be made
    before.write_bytes(whole)
    extend(done, 8)
    hurt(before, "flip")
    refused, file = written(done.path.name)
    assert (refused.code, file) == (2, None)
    *_, way_out = re.findall(r"`longreel resume ([^`]* --drop)`", refused.message)
    assert written(*shlex.split(way_out))[1] == truth
    (way_out,) = re.findall(r"`longreel resume ([^`]* --redo [^`]*)`", str(at_once.value))
    assert written(*shlex.split(way_out))[1] != truth
    assert len(written(done.path.name, "--extend", 8)[1]) > len(truth)


@pytest.mark.parametrize("edit", [["--extend", "8"], ["--drop"]])
def test_an_edit_that_a_full_disk_does_not_take_note_of_says_that_nothing_has_changed(
    edit, done, written, monkeypatch
):
    if edit == ["--drop"]:
        extend(done, 8)
    state, revision = done.status().state, done.revision

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(lock, "write_whole", full)
        refused, _ = written(done.path.name, *edit)
    assert refused.code == 1
    assert f"No space left on device; render {done.id} is as it was" in refused.message
    assert (done.status().state, done.revision) == (state, revision)
