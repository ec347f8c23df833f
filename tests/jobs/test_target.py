"""Where a render cannot be written is said before anything is made."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from video_file import save

from longreel.configs.schema import OutputConfig
from longreel.jobs.home.home import Home
from longreel.jobs.submit import driver
from longreel.jobs.submit.errand import Errand
from longreel.jobs.target import Written, check_output, estimate_bytes

MP4 = OutputConfig()
PNG = OutputConfig(format="png")


def check(path: Path, output: OutputConfig = MP4, num_frames=17, height=64, width=96) -> None:
    check_output(path, output, num_frames=num_frames, height=height, width=width)


@pytest.mark.parametrize("name", ["video.mp4", "VIDEO.MP4", "video.final.mp4"])
def test_a_good_path_passes_and_nothing_is_left(tmp_path, name):
    check(tmp_path / name)
    assert os.listdir(tmp_path) == []

    (tmp_path / name).write_bytes(b"older")
    check(tmp_path / name)
    assert (tmp_path / name).read_bytes() == b"older"


def test_a_new_or_empty_folder_passes_for_pictures(tmp_path):
    check(tmp_path / "frames.v2", PNG, height=33)
    (tmp_path / "empty").mkdir()
    check(tmp_path / "empty", PNG)
    assert os.listdir(tmp_path) == ["empty"]


@pytest.mark.parametrize(
    ("name", "output", "message"),
    [
        ("no/video.mp4", MP4, r"output=.*no/video\.mp4 lies in .*no, which does not exist.*make"),
        ("file/video.mp4", MP4, r"output=.*file, which is not a folder.*choose another path"),
        ("file/no/video.mp4", MP4, r"output=.*file/no, which does not exist"),
        ("folder.mp4", MP4, r"output=.*folder\.mp4 is a folder.*such as .*folder\.mp4/video\.mp4"),
        (
            "video.mov",
            MP4,
            r"output=.*video\.mov does not end in \.mp4.*name it video\.mp4, or set",
        ),
        ("full", MP4, r"output=.*full is a folder.*such as .*full/video\.mp4"),
        ("video", MP4, r"output=.*does not end in \.mp4.*name it video\.mp4, or set"),
        (".mp4", MP4, r"does not end in \.mp4"),
        ("", MP4, r"output=\. is a folder.*such as video\.mp4"),
        ("video.mp4", PNG, r"ends in \.mp4, but output\.format=png.*name it video, or set"),
        ("video.PNG", PNG, r"ends in \.png, but output\.format=png.*name it video, or set"),
        ("file", PNG, r"output=.*file is a file, where .* makes a folder.*remove the file"),
        ("full", PNG, r"output=.*full already holds files.*empty the folder"),
        ("n" * 252 + ".mp4", MP4, r"cannot be used as a name \(File name too long\)"),
        ("n" * 300 + "/video.mp4", MP4, r"which does not exist"),
        ("n" * 300, PNG, r"cannot be used as a name \(File name too long\)"),
    ],
)
def test_a_bad_path_is_an_error_that_says_what_to_do(tmp_path, name, output, message):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(ValueError, match=message):
        check(tmp_path / name if name else Path(name), output)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("output", [MP4, PNG], ids=["mp4", "png"])
def test_a_folder_that_takes_no_file_is_an_error(output):
    # /proc refuses new files even to root
    path = Path("/proc/video.mp4" if output is MP4 else "/proc/frames")
    with pytest.raises(ValueError, match=r"output=/proc/.* which takes none \(.*may write to"):
        check(path, output)


def test_an_odd_size_is_an_error_where_colour_is_halved(tmp_path):
    with pytest.raises(ValueError, match=r"video\.height=64, video\.width=95.*yuv420p10le keeps"):
        check(tmp_path / "video.mp4", OutputConfig(pixel_format="yuv420p10le"), width=95)
    check(tmp_path / "video.mp4", OutputConfig(pixel_format="yuv444p"), width=95)


@pytest.mark.parametrize(
    ("output", "way_out"), [(MP4, r"raise output\.crf=18"), (PNG, r"set output\.format=mp4")]
)
def test_a_disk_that_is_too_small_is_an_error(tmp_path, monkeypatch, output, way_out):
    path = tmp_path / ("video.mp4" if output is MP4 else "frames")
    needed = estimate_bytes(output, num_frames=100, height=480, width=832)

    free = SimpleNamespace(free=needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    message = rf"output=.* may take {needed / 1e6:.1f} MB and .* MB are free.*{way_out}"
    with pytest.raises(ValueError, match=message):
        check(path, output, num_frames=100, height=480, width=832)
    assert os.listdir(tmp_path) == []

    free.free = needed
    check(path, output, num_frames=100, height=480, width=832)


def test_what_is_written_beside_the_video_needs_room_too(tmp_path, monkeypatch):
    """On a disk of its own, or on that of the video, which then holds both."""
    needed = estimate_bytes(MP4, num_frames=17, height=64, width=96)
    kept = Written("--home=/h", tmp_path / "not" / "there", 10**9)
    (tmp_path / "out").mkdir()
    devices, stat = {tmp_path: 1, tmp_path / "out": 1}, Path.stat
    free = {1: needed + 10**9, 2: 10**9}

    def of_two_disks(path: Path, **options: bool) -> object:
        at = devices.get(path)
        return SimpleNamespace(st_dev=at) if at else stat(path, **options)

    monkeypatch.setattr(Path, "stat", of_two_disks)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: SimpleNamespace(free=free[devices[path]])
    )

    def check() -> None:
        path = tmp_path / "out" / "video.mp4"
        check_output(path, MP4, num_frames=17, height=64, width=96, beside=[kept])

    check()
    free[1] -= 1
    with pytest.raises(ValueError, match=r"output=.*mp4 and --home=/h may take 1000\.\d MB and "):
        check()
    devices[tmp_path] = 2
    check()
    free[2] -= 1
    with pytest.raises(ValueError, match=r"^--home=/h may take 1000\.0 MB and 1000\.0 MB are free"):
        check()


@pytest.mark.parametrize(
    "output",
    [
        PNG,
        OutputConfig(crf=0),
        OutputConfig(crf=18),
        OutputConfig(crf=30),
        OutputConfig(crf=12, pixel_format="yuv444p"),
        OutputConfig(crf=12, pixel_format="yuv420p10le"),
        OutputConfig(crf=0, encoder_preset="ultrafast"),
        OutputConfig(crf=18, encoder_preset="ultrafast"),
    ],
    ids=lambda output: f"{output.format}-{output.crf}-{output.pixel_format}",
)
def test_a_video_of_heavy_grain_stays_under_the_estimate(tmp_path, output):
    grain = np.random.default_rng(0).normal(0, 10, (12, 192, 320, 3))
    frames = (127 + 60 * np.sin(np.arange(320) / 30)[:, None] + grain).clip(0, 255).astype(np.uint8)
    path = tmp_path / ("video.mp4" if output.format == "mp4" else "frames")
    save(path, frames, output, metadata={"prompt": "a fox"})

    files = path.iterdir() if path.is_dir() else [path]
    taken = sum(file.stat().st_size for file in files)
    assert taken <= estimate_bytes(output, num_frames=12, height=192, width=320)
    if output.format == "png":
        white = np.random.default_rng(0).integers(0, 256, frames.shape, dtype=np.uint8)
        save(tmp_path / "white", white, output)
        taken = sum(file.stat().st_size for file in (tmp_path / "white").iterdir())
        assert taken <= estimate_bytes(output, num_frames=12, height=192, width=320)


def test_a_job_whose_disk_could_not_hold_its_render_ends_before_it_begins(tmp_path, monkeypatch):
    small = ["video.height=32", "video.width=48", "model.text_cache="]
    errand = Errand(
        render="r", home=str(tmp_path), prompt="x", preset="tiny", frames=33, overrides=small
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**5))
    with pytest.raises(ValueError, match=r"0\.1 MB are free"):
        driver._make(errand)
    assert Home(tmp_path).open("r").status().attempt == 0
