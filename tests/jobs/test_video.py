"""Reading a finished video back, frame by frame."""

import os
import subprocess
import sys
from dataclasses import FrozenInstanceError

import av
import numpy as np
import pytest
from video_file import save

from longreel.configs.schema import Config, OutputConfig
from longreel.jobs.video import Video, read_metadata

NUM_FRAMES, HEIGHT, WIDTH = 21, 62, 90


def gradient() -> np.ndarray:
    t, y, x = np.mgrid[0:NUM_FRAMES, 0:HEIGHT, 0:WIDTH]
    return np.stack([40 + 8 * t, 30 + 2 * y + t, 20 + 2 * x], axis=-1).astype(np.uint8)


@pytest.fixture(params=["yuv420p", "yuv444p", "yuv420p10le", "png"])
def video(request, tmp_path) -> Video:
    if request.param == "png":
        output, path = OutputConfig(format="png"), tmp_path / "frames"
    else:
        output, path = OutputConfig(pixel_format=request.param), tmp_path / "video.mp4"
    save(path, gradient(), output, metadata={"seed": "7"})
    return Video(path=path, config=Config(output=output), num_frames=NUM_FRAMES, fps=16)


def lowest_free_descriptor() -> int:
    """What POSIX gives to the next file, which tells how many are open."""
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.close(descriptor)
    return descriptor


def test_frames_come_back_in_order_and_full(video):
    frames = list(video.frames)

    assert len(frames) == NUM_FRAMES
    assert all(frame.shape == (HEIGHT, WIDTH, 3) for frame in frames)
    assert all(frame.dtype == np.uint8 for frame in frames)
    error = np.stack(frames).astype(float) - gradient()
    if video.path.is_dir():
        assert not error.any()
    else:
        assert 10 * np.log10(255**2 / np.mean(error**2)) > 38


def test_frames_are_what_bt709_makes_of_the_file(tmp_path):
    path, output = tmp_path / "video.mp4", OutputConfig(pixel_format="yuv444p")
    save(path, gradient(), output)
    with av.open(path) as container:
        planes = np.stack([frame.to_ndarray() for frame in container.decode(video=0)])

    luma = (planes[:, 0] - 16.0) / 219  # ITU-R BT.709-6, 3.2 to 3.5, in 8 bits
    blue = luma + 1.8556 * (planes[:, 1] - 128.0) / 224
    red = luma + 1.5748 * (planes[:, 2] - 128.0) / 224
    green = (luma - 0.2126 * red - 0.0722 * blue) / 0.7152
    expected = 255 * np.stack([red, green, blue], axis=-1).clip(0, 1)

    frames = np.stack(list(Video(path, Config(output=output), NUM_FRAMES, 16).frames))
    assert np.abs(frames - expected).max() <= 1  # fixed-point arithmetic


def test_each_access_starts_again_and_readers_do_not_disturb_each_other(video):
    first, second = video.frames, video.frames
    next(first)
    ahead = next(first)
    behind = next(second)

    assert not np.array_equal(ahead, behind)
    assert np.array_equal(next(second), ahead)


def test_the_file_is_open_only_while_frames_are_taken(video):
    list(video.frames)  # whatever stays open for good, such as libraries, is open now
    free = lowest_free_descriptor()

    frames = video.frames
    assert lowest_free_descriptor() == free
    next(frames)
    assert (lowest_free_descriptor() > free) == video.path.is_file()  # pictures are read whole
    del frames
    assert lowest_free_descriptor() == free

    assert len(list(video.frames)) == NUM_FRAMES
    assert lowest_free_descriptor() == free


def test_pictures_are_read_by_number(tmp_path):
    frames = np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3)
    output = OutputConfig(format="png")
    folder = tmp_path / "frames"
    save(folder, frames, output)
    for old, new in (("00002", "100000"), ("00001", "99999"), ("00000", "99998")):
        (folder / f"{old}.png").rename(folder / f"{new}.png")

    video = Video(path=folder, config=Config(output=output), num_frames=3, fps=16)
    assert np.array_equal(np.stack(list(video.frames)), frames)


def test_metadata_is_what_the_writer_was_given(video):
    assert read_metadata(video.path) == {"seed": "7"}


def test_a_video_cannot_be_changed(video):
    with pytest.raises(FrozenInstanceError):
        video.fps = 30


def test_importing_reader_and_writer_loads_no_pyav(tmp_path):
    code = (
        "import sys, longreel.jobs.video, longreel.jobs.home.export\n"
        "assert not {'av', 'torch', 'yaml'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True, cwd=tmp_path, timeout=60)
