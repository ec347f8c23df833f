"""A contact sheet shows the frame in the middle of each video, and decodes little for it."""

import av
import numpy as np
import pytest
from PIL import Image
from video_file import save

from longreel.jobs.client.sheet import write_sheet


class Counted:
    """A file that counts the frames that are decoded of it."""

    def __init__(self, file, seen):
        self._file, self._seen = file, seen

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)

    def decode(self, *streams, **more):
        for frame in self._file.decode(*streams, **more):
            self._seen.append(frame.pts)
            yield frame


@pytest.mark.parametrize(("frames", "cuts"), [(1, ()), (12, (5, 9)), (81, range(9, 81, 8))])
def test_the_picture_is_the_frame_in_the_middle(tmp_path, monkeypatch, frames, cuts):
    shades = np.linspace(20, 230, frames).astype(np.uint8)
    pixels = np.broadcast_to(shades[:, None, None, None], (frames, 32, 48, 3)).copy()
    video = save(tmp_path / "a.mp4", pixels, cuts=tuple(cuts))
    seen, open_file = [], av.open
    monkeypatch.setattr(av, "open", lambda path: Counted(open_file(path), seen))
    write_sheet(tmp_path / "sheet.jpg", [video])
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        shown = np.asarray(sheet).astype(int)
    assert np.abs(shown - int(shades[frames // 2])).max() <= 4  # of two codecs
    assert len(seen) <= 8, "those of one segment at most"


def test_a_damaged_video_keeps_its_place_and_is_named(tmp_path, caplog):
    bright = np.full((5, 32, 48, 3), 200, np.uint8)
    videos = [save(tmp_path / f"{name}.mp4", bright) for name in "abcd"]
    videos[1].write_bytes(videos[1].read_bytes()[:300])
    videos[2].write_bytes(b"")
    write_sheet(tmp_path / "sheet.jpg", videos)
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        shown = np.asarray(sheet).astype(int)
    assert shown.shape[:2] == (2 * 32, 2 * 48)
    places = [shown[row : row + 32, column : column + 48] for row in (0, 32) for column in (0, 48)]
    # away from the edges, where JPEG smears
    assert [int(place[8:-8, 8:-8].mean()) > 100 for place in places] == [True, False, False, True]
    said = [record.getMessage() for record in caplog.records]
    assert [str(videos[i]) in line for i, line in zip((1, 2), said, strict=True)] == [True, True]
