"""Where a render is to be written: checked while the user can still change it."""

import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from ..configs.schema import OutputConfig

if TYPE_CHECKING:
    from ..pipeline.plan import Plan

# Bits that x264 spends on one sample at crf 0, and the crf that halves them. An upper estimate: for
# grain of sigma 10 in every channel it is 1.03 to 2.9 times what was measured at crf 0, 12, 18 and
# 24 (yuv420p, medium), and pictures without grain take far less. White noise takes about twice it.
BITS_PER_SAMPLE = 5.5
CRF_THAT_HALVES = 12
PNG_BYTES_PER_SAMPLE = 1.02  # measured on white noise, which deflate makes larger


class NoRoom(ValueError):  # noqa: N818 -- what is the matter with the disk
    """It could fill before the last frame."""


@dataclass(frozen=True)
class Written:
    """What a render writes to a disk."""

    what: str  # as users call it
    folder: Path  # where it goes; it need not exist
    num_bytes: int  # at most

    @property
    def disk(self) -> Path:
        """A folder that is there, on the same disk."""
        whole = self.folder.absolute()
        return next(place for place in (whole, *whole.parents) if os.path.isdir(place))


def check_output(
    path: Path,
    output: OutputConfig,
    *,
    num_frames: int,
    height: int,
    width: int,
    beside: Sequence[Written] = (),
) -> None:
    """ValueError if `path` cannot take such a video, or a disk not that and what is written beside
    it; nothing is left behind either way."""
    check_target(path, output)
    _check_size(output, height=height, width=width)
    folder = path.absolute().parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"output={path} needs a file in {folder}, which takes none ({error.strerror}); "
            "choose a folder that you may write to"
        ) from error
    needed = estimate_bytes(output, num_frames=num_frames, height=height, width=width)
    way_out = f"free some space, choose another disk, or {_smaller(output)}"
    _check_room([Written(f"output={path}", folder, needed), *beside], way_out)


def kept(plan: "Plan", what: str, folder: Path, made: int = 0) -> Written:
    """Segments and latents of the frames of this plan that are not made yet."""
    video = plan.config.video
    rest = max(0, video.frames - made)
    segments = estimate_bytes(
        plan.config.output, num_frames=rest, height=video.height, width=video.width
    )
    return Written(what, folder, segments + plan.latents_bytes * rest // video.frames)


def check_home(plan: "Plan", home: Path, made: int = 0, promised: int = 0) -> None:
    """NoRoom where its disk cannot take what is left to be made; of a plan without end it can.

    `promised`: bytes that others may yet write there.
    """
    if plan.config.video.frames:
        num_bytes = kept(plan, "", home, made).num_bytes
        check_rest(home, num_bytes, promised, "free some space or ask for fewer frames")


def check_rest(home: Path, num_bytes: int, promised: int, way_out: str) -> None:
    """As `check_home`, of a render that may yet write so many bytes."""
    written = [Written("the render", home, num_bytes)]
    if promised:
        written.append(Written("those that were accepted before it", home, promised))
    _check_room(written, way_out)


def _check_room(written: Sequence[Written], way_out: str) -> None:
    def device(one: Written) -> int:
        return one.disk.stat().st_dev

    for _, group in groupby(sorted(written, key=device), key=device):
        sharing = list(group)
        needed = sum(one.num_bytes for one in sharing)
        free = shutil.disk_usage(sharing[0].disk).free
        if needed > free:
            raise NoRoom(
                f"{' and '.join(one.what for one in sharing)} may take {_megabytes(needed)} and "
                f"{_megabytes(free)} are free, so the disk could fill before the last frame; "
                f"{way_out}"
            )


def check_target(path: Path, output: OutputConfig) -> None:
    """ValueError if the name, its folder or what is already there does not suit the format."""
    if output.format == "mp4" and os.path.isdir(path):
        raise ValueError(
            f"output={path} is a folder, which a video file cannot replace; "
            f"choose a name inside it, such as {path / 'video.mp4'}"
        )
    _check_suffix(path, output)
    check_folder("output", path)
    try:
        path.absolute().lstat()  # tells a name that the file system refuses from one that is free
        _check_existing(path, output)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ValueError(
            f"output={path} cannot be used as a name ({error.strerror}); choose another path"
        ) from error


def check_folder(what: str, path: Path) -> None:
    """ValueError unless there is one that it can lie in."""
    folder = path.absolute().parent
    if not os.path.isdir(folder):  # Path.is_dir raises for names that are too long
        state = "is not a folder" if os.path.lexists(folder) else "does not exist"
        raise ValueError(
            f"{what}={path} lies in {folder}, which {state}, so there is nowhere to write; "
            "make that folder first or choose another path"
        )


def _check_size(output: OutputConfig, *, height: int, width: int) -> None:
    """ValueError if the pixel format cannot hold frames of this size."""
    if output.format == "mp4" and _halves_colour(output) and (height % 2 or width % 2):
        raise ValueError(
            f"video.height={height}, video.width={width}: output.pixel_format="
            f"{output.pixel_format} keeps colour at half of each side, which an odd side does not "
            "have; use even sizes or output.pixel_format=yuv444p"
        )


def estimate_bytes(output: OutputConfig, *, num_frames: int, height: int, width: int) -> int:
    """What the video takes on disk at most, for pictures as noisy as strong film grain."""
    pixels = num_frames * height * width
    if output.format == "png":
        headers = num_frames * (height + 4096)  # a byte a row; files fill whole blocks
        return math.ceil(3 * pixels * PNG_BYTES_PER_SAMPLE) + headers
    samples = pixels * (1.5 if _halves_colour(output) else 3)
    bits = samples * BITS_PER_SAMPLE * 2 ** (-output.crf / CRF_THAT_HALVES)
    if output.encoder_preset == "ultrafast":
        bits *= 2  # measured: 1.1 to 2.1 times medium at crf 0 to 18, as it has no CABAC
    return math.ceil(bits / 8) + num_frames * 100 + 2**16  # index and metadata


def _check_suffix(path: Path, output: OutputConfig) -> None:
    suffix = path.suffix.lower()
    if output.format == "mp4" and suffix != ".mp4":
        raise ValueError(
            f"output={path} does not end in .mp4, which output.format=mp4 makes, so players would "
            f"not know it; name it {path.with_suffix('.mp4').name if path.name else 'video.mp4'}, "
            "or set output.format=png for a folder of pictures"
        )
    if output.format == "png" and suffix in (".mp4", ".png"):
        raise ValueError(
            f"output={path} ends in {suffix}, but output.format=png makes a folder of pictures; "
            f"name it {path.stem}, or set output.format=mp4 for a video file"
        )


def _check_existing(path: Path, output: OutputConfig) -> None:
    if output.format == "png" and not path.is_dir():
        raise ValueError(
            f"output={path} is a file, where output.format=png makes a folder; "
            "choose another path or remove the file"
        )
    if output.format == "png" and any(path.iterdir()):
        raise ValueError(
            f"output={path} already holds files, which pictures of this video would mix with; "
            "choose another path or empty the folder"
        )


def _halves_colour(output: OutputConfig) -> bool:
    return "420" in output.pixel_format


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _smaller(output: OutputConfig) -> str:
    if output.format == "png":
        return "set output.format=mp4"
    return f"raise output.crf={output.crf}"
