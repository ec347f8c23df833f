"""A reader of a video that is being edited has the one before the edit or the one after it."""

import numpy as np
import pytest
from finished import digests, frames_of, make

from longreel.jobs.home.edits import extend, redo
from longreel.jobs.home.folder import RenderFolder
from longreel.jobs.home.home import Home
from longreel.jobs.home.segments import Replaced
from longreel.jobs.mp4 import decode_mp4

pytestmark = pytest.mark.usefixtures("tiny_archs")


@pytest.fixture
def render(finished, tmp_path):
    return finished.copy(tmp_path, "dualparal-grouped")


def test_a_reader_of_a_video_whose_redo_ends_meanwhile_reads_the_old_one_to_its_end(render):
    old = frames_of(render)
    reader = RenderFolder(render.path)
    early, late = (reader.follow(timeout_s=10) for _ in range(2))
    seen, shown = [next(early)], reader.frames()
    first = next(shown)
    redo(render, 16, 18)
    seen.append(next(early))
    assert reader.wait(len(digests(render)), timeout_s=0) is None, "nothing more will come of it"
    make(render)
    next(late)  # began before and comes now
    assert [s.number for s in late] == list(range(1, len(seen) + len(rest := list(early))))
    assert np.array_equal(frames_of(render, [*seen, *rest]), old)
    assert np.array_equal(np.stack([first, *shown]), old)
    new = [*reader.follow(timeout_s=10)]
    assert [s.digest for s in new] == digests(render)
    assert not np.array_equal(frames_of(render), old)
    assert reader.cut().number == 1


def test_a_reader_of_what_a_later_edit_removes_is_told(render, tmp_path):
    reader = RenderFolder(render.path)
    segments, following = render.segments(), reader.follow(timeout_s=10)
    next(following)
    redo(render, 16, 18)
    make(render)
    next(following)
    extend(render, 8)
    with pytest.raises(Replaced, match=r"cut 0 of render .* was replaced by cut 1.*read the video"):
        next(following)
    with pytest.raises(Replaced, match=r"is gone: where edits have replaced it while the video"):
        frames_of(render, segments)


def test_the_file_of_a_video_whose_redo_is_not_done_is_the_old_one(render, tmp_path):
    render.export(tmp_path / "old.mp4")
    redo(render, 16, 18, prompt="a fish")
    render.export(tmp_path / "again.mp4")
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "old.mp4").read_bytes()
    make(render)
    render.export(tmp_path / "new.mp4")
    assert len([*decode_mp4(tmp_path / "new.mp4")]) == len([*decode_mp4(tmp_path / "old.mp4")])
    assert b"a fish" in (tmp_path / "new.mp4").read_bytes()


def test_a_copy_of_a_redone_render_has_its_files_alone(render, tmp_path):
    redo(render, 16, 18)
    made = make(render)
    copy = Home(tmp_path / "home").copy(render)
    assert digests(copy) == made
    kept = {path for segment in copy.segments() for path in segment.files}
    assert {*copy.path.glob("segments/*"), *copy.path.glob("latents/*")} == kept
    assert np.array_equal(frames_of(copy), frames_of(render))
