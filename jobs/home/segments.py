"""Segments: some blocks' frames as fragments of one MP4, each coded on its own and never touched.

The start of that file (`init.mp4`) and any run of segments after it are a video that players take;
all of them are the whole one. B-frames are off, so that every frame is decoded in its place and
time goes on from segment to segment without a gap.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...configs.schema import OutputConfig
from ..mp4 import PictureMaker, add_stream, decode_pictures, muxer_options
from .place import resume_command

Frames = npt.NDArray[np.uint8]  # n x height x width x 3
_Bytes = bytes  # a segment has a field of that name

# One tick of the timescale a frame. Neither an edit list nor offsets: times are a frame's number.
_MOVFLAGS = "empty_moov+default_base_moof+frag_keyframe+skip_trailer+use_metadata_tags"


class Replaced(ValueError):  # noqa: N818 -- what has happened to it
    """What was read is not there any more: edits have others in its place."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A run of frames that is final."""

    number: int
    first: int  # frame
    frames: int
    blocks: tuple[int, int]  # the first, and the one after the last
    path: Path  # fragments alone; `init.mp4` goes before them
    bytes: int
    digest: str  # of the fragments
    latents: str = ""  # digest of the file that keeps them; empty: none does

    @property
    def stop(self) -> int:
        """The frame after its last."""
        return self.first + self.frames

    def read(self) -> _Bytes:
        """Its fragments. Replaced: they are gone. ValueError: they are not those it had."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            raise Replaced(
                f"{self.path} is gone: where edits have replaced it while the video was read, read "
                f"it anew from its beginning; else {self._way_out()}"
            ) from None
        if digest(data) != self.digest:
            raise ValueError(
                f"{self.path} is damaged (its digest is not the one in the journal), so frames "
                f"{self.first}..{self.stop} would be lost or wrong; {self._way_out()}"
            )
        return data

    def _way_out(self) -> str:
        again = f"{resume_command(self.path.parents[1])} --redo {self.first}..{self.stop}"
        return f"put it back from a copy, or have its frames made anew with `{again}`"

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path, self.latents_path) if self.latents else (self.path,)

    @property
    def latents_path(self) -> Path:
        return self.path.parents[1] / "latents" / f"{self.path.stem}.safetensors"


def encode_segment(
    frames: Sequence[Frames], first: int, *, fps: int, output: OutputConfig
) -> tuple[bytes, bytes]:
    """The start of the file, the same for every segment, and the fragments of these frames."""
    import av

    assert frames, "a segment has frames"
    file, maker = io.BytesIO(), PictureMaker(output)
    height, width = frames[0].shape[1:3]
    options = muxer_options(fps) | {
        "movflags": _MOVFLAGS,
        "use_editlist": "0",
        "fragment_index": str(first + 1),  # rises, as a fragment has a frame at least
    }
    with av.open(file, "w", format="mp4", options=options) as container:
        stream = add_stream(container, height=height, width=width, fps=fps, output=output)
        for count, frame in enumerate(chain.from_iterable(frames)):
            picture = maker.make(frame)
            picture.pts, picture.time_base = count, Fraction(1, fps)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return _split(file.getvalue(), first)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def decode_segments(
    init: Path, segments: Iterable[Segment], output: OutputConfig
) -> Iterator[Frames]:
    """Their frames, height x width x 3, one at a time: what any player of the whole file shows."""
    start = read_start(init)
    for segment in segments:
        yield from decode_pictures(io.BytesIO(start + segment.read()), output)


def read_start(init: Path) -> bytes:
    """ValueError: it is gone or cut."""
    data = init.read_bytes() if init.exists() else b""
    ftyp = int.from_bytes(data[:4], "big")
    moov = int.from_bytes(data[ftyp : ftyp + 4], "big")
    if not data or ftyp + moov != len(data):
        raise ValueError(
            f"{init} is {'damaged' if data else 'gone'}, and without it nothing can be made of the "
            "segments; put it back from a copy, or take that of another render of the same size, "
            "frame rate and output.*, made with the same PyAV"
        )
    return data


def _split(data: bytes, first: int) -> tuple[bytes, bytes]:
    """Before the first fragment, and the fragments, moved to where they are in the video."""
    fragments = bytearray(data)
    start = 0
    for kind, place in _boxes(data, 0, len(data)):
        if kind == b"moov":
            start = place.stop
        elif kind == b"moof":
            for name, inner in _boxes(data, place.start + 8, place.stop):
                if name == b"traf":
                    _move(fragments, data, inner, first)
    return data[:start], bytes(fragments[start:])


def _move(fragments: bytearray, data: bytes, traf: range, first: int) -> None:
    """The muxer counts time from each segment's first frame."""
    for name, place in _boxes(data, traf.start + 8, traf.stop):
        if name == b"tfdt":
            assert data[place.start + 8] == 1, "time is in 64 bits"
            run = slice(place.start + 12, place.start + 20)
            fragments[run] = (int.from_bytes(data[run], "big") + first).to_bytes(8, "big")


def _boxes(data: bytes, start: int, stop: int) -> Iterator[tuple[bytes, range]]:
    """The boxes of an MP4 file, one after the other, each with its place."""
    while start < stop:
        size = int.from_bytes(data[start : start + 4], "big")
        assert size >= 8, "a box has a header"
        yield data[start + 4 : start + 8], range(start, start + size)
        start += size
