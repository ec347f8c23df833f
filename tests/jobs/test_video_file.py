"""What the file of a render holds, read back with PyAV alone."""

import hashlib
import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from video_file import save as save_file

from longreel.configs.schema import OutputConfig
from longreel.jobs.home.segments import Segment, encode_segment
from longreel.jobs.video import read_metadata

HEIGHT, WIDTH, FPS = 64, 96, 16
MP4 = OutputConfig()
PNG = OutputConfig(format="png")
METADATA = {
    "config": "video:\n  height: 64\n  prompt: 'caf\u00e9'  # \u6f22\u5b57\n" * 200,
    "prompt": 'A fox \U0001f98a says "\u6f22\u5b57"; a=b #c\n\n  and \\ leaves\u2028quietly\t. ',
    "negative_prompt": "",
    "seed": "0",
    "version": "0.1.0",
}
COLOURS = np.array(
    [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 255, 0),
        (0, 255, 255),
        (255, 0, 255),
        (255, 255, 255),
        (0, 0, 0),
        (128, 128, 128),
        (200, 60, 30),
    ],
    dtype=np.uint8,
)


def moving_gradient(num_frames: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    t, y, x = np.mgrid[0:num_frames, 0:height, 0:width]
    red = 127 + 120 * np.sin((x + 2 * t) / 40)
    green = 127 + 120 * np.cos((y + t) / 30)
    blue = 127 + 100 * np.sin((x + y) / 50 + t / 10)
    return np.stack([red, green, blue], axis=-1).round().astype(np.uint8)


def noise(num_frames: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    shape = (num_frames, height, width, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, frames: np.ndarray, output: OutputConfig = MP4, metadata=METADATA, **others):
    return save_file(path, frames, output, metadata=metadata, **others)


def decoded(path: Path) -> np.ndarray:
    """RGB as any reader gets it that follows the tags of the file."""
    with av.open(path) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


def boxes(data: bytes) -> list[tuple[str, bytes]]:
    """The MP4 boxes in `data`, as (type, content)."""
    found, at = [], 0
    while at < len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        assert size >= 8, "a box that is longer than 4 GB or runs to the end of the file"
        found.append((name.decode(), data[at + 8 : at + size]))
        at += size
    return found


@pytest.mark.parametrize("num_frames", [1, 17, 61])
@pytest.mark.parametrize("fps", [16, 24, 30])
def test_every_frame_is_in_the_file_at_its_exact_time(tmp_path, num_frames, fps):
    cuts = [9, 25] if num_frames == 61 else ()
    path = save(tmp_path / "video.mp4", moving_gradient(num_frames), fps=fps, cuts=cuts)

    with av.open(path) as container:
        stream = container.streams.video[0]
        times = [frame.pts * stream.time_base for frame in container.decode(stream)]
        assert times == [Fraction(i, fps) for i in range(num_frames)]
        assert stream.average_rate == fps
        assert stream.frames == num_frames
        assert stream.start_time == 0
        assert stream.duration * stream.time_base == Fraction(num_frames, fps)
        # microseconds, which 1/24 and 1/30 do not divide
        assert abs(Fraction(container.duration, 10**6) - Fraction(num_frames, fps)) <= 1e-6


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p", "yuv420p10le"])
def test_the_file_is_h264_of_the_asked_size_and_says_bt709_in_limited_range(tmp_path, pixel_format):
    output = OutputConfig(pixel_format=pixel_format)
    path = save(tmp_path / "video.mp4", moving_gradient(3, 62, 90), output)

    with av.open(path) as container:
        codec = container.streams.video[0].codec_context
        assert codec.name == "h264"
        assert (codec.height, codec.width, codec.pix_fmt) == (62, 90, pixel_format)
        tags = (codec.color_range, codec.color_primaries, codec.color_trc, codec.colorspace)
        assert tags == (1, 1, 1, 1)


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p", "yuv420p10le"])
def test_red_is_red(tmp_path, pixel_format):
    flat = np.broadcast_to(COLOURS[:, None, None], (len(COLOURS), HEIGHT, WIDTH, 3))
    path = save(tmp_path / "video.mp4", flat, OutputConfig(pixel_format=pixel_format))

    # 3: PyAV's own conversion back is 8-bit and rounds down; BT.601 for BT.709 would be 24 or more
    assert np.abs(decoded(path).astype(int) - flat).max() <= 3


def test_red_in_the_file_is_what_bt709_says_it_is(tmp_path):
    flat = np.broadcast_to(COLOURS[:, None, None], (len(COLOURS), HEIGHT, WIDTH, 3))
    path = save(tmp_path / "video.mp4", flat, OutputConfig(pixel_format="yuv444p", crf=1))
    with av.open(path) as container:
        planes = np.stack([frame.to_ndarray() for frame in container.decode(video=0)])

    red, green, blue = (COLOURS / 255).T  # ITU-R BT.709-6, 3.2 to 3.5, in 8 bits
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    expected = np.stack(
        [16 + 219 * luma, 128 + 224 * (blue - luma) / 1.8556, 128 + 224 * (red - luma) / 1.5748]
    ).T
    assert np.abs(planes.mean(axis=(2, 3)) - expected).max() <= 1


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p", "yuv420p10le"])
def test_a_smooth_moving_gradient_keeps_its_quality(tmp_path, pixel_format):
    frames = moving_gradient(24, 128, 192)
    path = save(tmp_path / "video.mp4", frames, OutputConfig(crf=18, pixel_format=pixel_format))

    assert psnr(decoded(path), frames) > 38


def test_crf_and_encoder_preset_reach_the_encoder(tmp_path):
    frames = moving_gradient(5)
    fine = save(tmp_path / "fine.mp4", frames, OutputConfig(crf=10))
    rough = save(tmp_path / "rough.mp4", frames, OutputConfig(crf=35))
    fast = save(tmp_path / "fast.mp4", frames, OutputConfig(encoder_preset="ultrafast"))

    assert psnr(decoded(fine), frames) > psnr(decoded(rough), frames) + 6
    assert b"crf=35.0" in rough.read_bytes()  # x264 writes its settings into the stream
    assert b"cabac=1" in fine.read_bytes()
    assert b"cabac=0" in fast.read_bytes()


def test_a_player_finds_the_index_before_the_pictures_and_no_date(tmp_path):
    path = save(tmp_path / "video.mp4", moving_gradient(9))

    top = boxes(path.read_bytes())
    names = [name for name, _ in top]
    assert names.index("moov") < names.index("mdat")
    header = dict(boxes(dict(top)["moov"]))["mvhd"]
    assert struct.unpack_from(">III", header) == (0, 0, 0)  # version, created, modified


def test_the_same_frames_give_the_same_bytes(tmp_path):
    frames = moving_gradient(24)
    digests = set()
    for i in range(8):
        # so that x264 is given memory of other content: without cpu-independent, 8 files on AVX-512
        ballast = np.random.default_rng(i).bytes(400_000 * (i % 3) + 200_000)
        del ballast
        path = save(tmp_path / f"{i}.mp4", frames)
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())

    assert len(digests) == 1


def test_cutting_a_segments_frames_into_chunks_changes_no_byte():
    frames = moving_gradient(13)
    chunks = np.split(frames, [1, 6])
    whole, cut = (encode_segment(f, 4, fps=FPS, output=MP4) for f in ([frames], chunks))
    assert whole == cut


@pytest.mark.parametrize("name", ["video.mp4", "VIDEO.MP4", "take:1 50%d.mp4", "\u6f22\u5b57.mp4"])
def test_mp4_metadata_comes_back_in_full_whatever_the_file_is_called(tmp_path, name):
    path = save(tmp_path / name, moving_gradient(2))

    assert read_metadata(path) == METADATA
    with av.open(f"file:{path}") as container:
        assert {key: container.metadata[key] for key in METADATA} == METADATA


def test_long_metadata_comes_back_in_full(tmp_path):
    metadata = {"config": "0123456789abcde\n" * 8192}
    path = save(tmp_path / "video.mp4", moving_gradient(1), metadata=metadata)

    assert read_metadata(path) == metadata


def test_metadata_that_mp4_cannot_hold_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"prompt='a\\x00b' .* NUL .*remove it"):
        save(tmp_path / "video.mp4", moving_gradient(1), metadata={"prompt": "a\0b"})
    assert os.listdir(tmp_path) == []


def test_png_pictures_hold_every_bit(tmp_path):
    frames = noise(5)
    save(tmp_path / "frames", frames, PNG, cuts=[2])

    assert sorted(os.listdir(tmp_path)) == ["frames"]
    names = [f"{i:05d}.png" for i in range(5)]
    assert sorted(os.listdir(tmp_path / "frames")) == [*names, "config.yaml"]
    for name, frame in zip(names, frames, strict=True):
        assert np.array_equal(decoded(tmp_path / "frames" / name)[0], frame)


def test_png_takes_odd_sizes(tmp_path):
    frames = moving_gradient(2, 33, 47)
    folder = save(tmp_path / "frames", frames, PNG)

    assert np.array_equal(decoded(folder / "00001.png")[0], frames[1])


@pytest.mark.parametrize(
    "prompt", [METADATA["prompt"], "\n a\r\n", "x\x85\ny", "'\"", "null", " \n"]
)
def test_png_metadata_comes_back_in_full(tmp_path, prompt):
    metadata = {**METADATA, "prompt": prompt}
    folder = save(tmp_path / "frames", moving_gradient(1), PNG, metadata=metadata)

    assert read_metadata(folder) == metadata


def test_png_metadata_can_be_read_by_a_person(tmp_path):
    metadata = {"prompt": "a fox", "config": "video:\n  height: 64\n"}
    folder = save(tmp_path / "frames", moving_gradient(1), PNG, metadata=metadata)

    text = (folder / "config.yaml").read_text(encoding="utf-8")
    assert text == "prompt: a fox\nconfig: |\n  video:\n    height: 64\n"


def stopped(monkeypatch, error, path: Path) -> None:
    """While the second of two segments is read."""
    read = Segment.read

    def stop(segment: Segment) -> bytes:
        if segment.number:
            assert len(os.listdir(path.parent)) == 1 + path.exists()
            raise error
        return read(segment)

    monkeypatch.setattr(Segment, "read", stop)


@pytest.mark.parametrize("output", [MP4, PNG], ids=["mp4", "png"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_an_export_that_stops_leaves_nothing(tmp_path, output, error, monkeypatch):
    path = tmp_path / ("video.mp4" if output is MP4 else "frames")
    stopped(monkeypatch, error, path)
    with pytest.raises(error):
        save(path, noise(70), output, cuts=[40])

    assert os.listdir(tmp_path) == []


def test_an_export_that_stops_keeps_the_video_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "video.mp4"
    path.write_bytes(b"older")
    with monkeypatch.context() as patch:
        stopped(patch, KeyboardInterrupt, path)
        with pytest.raises(KeyboardInterrupt):
            save(path, moving_gradient(3), cuts=[2])
    assert os.listdir(tmp_path) == ["video.mp4"]
    assert path.read_bytes() == b"older"

    save(path, moving_gradient(3))
    assert os.listdir(tmp_path) == ["video.mp4"]
    assert len(decoded(path)) == 3


def test_an_error_while_the_file_is_completed_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path / "video.mp4", moving_gradient(3))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("output", [MP4, PNG], ids=["mp4", "png"])
def test_a_file_that_appears_is_on_the_disk_first(tmp_path, output, monkeypatch):
    path = tmp_path / ("video.mp4" if output is MP4 else "frames")
    synced = []
    real_fsync = os.fsync

    def record(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, path.exists()))
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    save(path, moving_gradient(2), output)

    files = [path, *path.iterdir()] if path.is_dir() else [path]
    before = {inode for inode, appeared in synced if not appeared}
    assert before == {file.stat().st_ino for file in files}
    assert synced[-1] == (tmp_path.stat().st_ino, True)


def test_an_odd_size_is_a_file_where_colour_is_whole(tmp_path):
    output = OutputConfig(pixel_format="yuv444p")
    save(tmp_path / "video.mp4", moving_gradient(1, 33, 47), output)
    assert decoded(tmp_path / "video.mp4").shape == (1, 33, 47, 3)


@pytest.mark.parametrize("name", ["n" * 251 + ".mp4", "\u6f22" * 83 + ".mp4"])
def test_the_longest_names_work(tmp_path, name):
    assert decoded(save(tmp_path / name, moving_gradient(1))).shape == (1, HEIGHT, WIDTH, 3)
