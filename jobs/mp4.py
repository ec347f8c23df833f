"""The H.264 MP4 that longreel makes: encoded from RGB frames, and decoded back to them.

BT.709 in limited range, tagged as such, so that red is red in every player. The same frames give
the same bytes, however often they are written and on however many cores.
"""

from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..configs.schema import OutputConfig

# SWS_BICUBIC | FULL_CHR_H_INT | FULL_CHR_H_INP | ACCURATE_RND | BITEXACT of libswscale. With its
# defaults saturated colours come back up to 3 of 255 off, and smooth gradients lose up to 5 dB.
_SCALER_FLAGS = 0x4 | 0x2000 | 0x4000 | 0x40000 | 0x80000

# the bytes depend on the number of threads, so it is not the machine's
_NUM_THREADS = 4

# Without it x264 (core 165) chooses AVX-512 code for its macroblock tree that reads memory it never
# wrote: on such a CPU ten runs over the same frames gave nine files. No measurable cost at 720p.
_X264_PARAMS = "cpu-independent=1:bframes=0"

Frame = npt.NDArray[np.uint8]  # height x width x 3

_BT709 = 1  # AVCOL_PRI_BT709, AVCOL_TRC_BT709, AVCOL_SPC_BT709
_LIMITED_RANGE = 1  # AVCOL_RANGE_MPEG
_FULL_RANGE = 2  # AVCOL_RANGE_JPEG

_CONTAINER_TAGS = ("major_brand", "minor_version", "compatible_brands")


class PictureMaker:
    """RGB frames to the pictures that x264 takes, and back."""

    def __init__(self, output: OutputConfig) -> None:
        from av.video.reformatter import VideoReformatter

        self._lossless = output.format == "png"
        self._pixel_format = output.pixel_format
        self._reformatter = VideoReformatter()

    def make(self, frame: Frame) -> Any:
        import av

        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        if self._lossless:
            return rgb
        return self._reformatter.reformat(
            rgb,
            format=self._pixel_format,
            dst_colorspace=_BT709,
            src_color_range=_FULL_RANGE,
            dst_color_range=_LIMITED_RANGE,
            interpolation=_SCALER_FLAGS,
        )

    def read(self, picture: Any) -> Frame:
        if self._lossless:
            rgb = picture.to_ndarray(format="rgb24")
        else:
            rgb = self._reformatter.reformat(
                picture,
                format="rgb24",
                src_colorspace=_BT709,
                src_color_range=_LIMITED_RANGE,
                dst_color_range=_FULL_RANGE,
                interpolation=_SCALER_FLAGS,
            ).to_ndarray()
        return rgb.astype(np.uint8, copy=False)  # type: ignore[no-any-return]


def add_stream(container: Any, *, height: int, width: int, fps: int, output: OutputConfig) -> Any:
    """An H.264 stream without B-frames, ready to encode.

    Of RGB, without loss, where pictures are made of it.
    """
    lossless = output.format == "png"
    stream = container.add_stream(
        "libx264rgb" if lossless else "libx264",
        rate=fps,
        width=width,
        height=height,
        pix_fmt="rgb24" if lossless else output.pixel_format,
        options={
            **(
                {"qp": "0", "preset": "ultrafast"}
                if lossless
                else {"crf": str(output.crf), "preset": output.encoder_preset}
            ),
            "x264-params": _X264_PARAMS,
        },
    )
    codec = stream.codec_context
    codec.time_base = Fraction(1, fps)
    codec.thread_count = _NUM_THREADS
    if not lossless:
        codec.color_range = _LIMITED_RANGE
        codec.color_primaries = codec.color_trc = codec.colorspace = _BT709
    container.start_encoding()  # a setting that x264 refuses fails here, not frames later
    return stream


def decode_mp4(path: Path) -> Iterator[Frame]:
    """The frames of a file that longreel made, height x width x 3, one at a time."""
    yield from decode_pictures(url(path), OutputConfig())


def decode_pictures(file: Any, output: OutputConfig) -> Iterator[Frame]:
    """The same of a path or an open file, encoded as `output` says."""
    import av

    maker = PictureMaker(output)
    with av.open(file) as container:
        for picture in container.decode(video=0):
            yield maker.read(picture)


def read_mp4_metadata(path: Path) -> dict[str, str]:
    """What the file was given, without what the container says about itself."""
    import av

    with av.open(url(path)) as container:
        tags = dict(container.metadata)
    return {key: text for key, text in tags.items() if key not in _CONTAINER_TAGS}


def muxer_options(fps: int) -> dict[str, str]:
    return {
        # a browser plays it before it has all of it; metadata of any name and length
        "movflags": "+faststart+use_metadata_tags",
        "fflags": "+bitexact",  # no version of the muxer in the file
        "video_track_timescale": str(fps),  # one tick a frame
        "movie_timescale": str(fps),  # the default, 1000, rounds the duration
    }


def checked(metadata: Mapping[str, str]) -> dict[str, str]:
    for key, text in metadata.items():
        if "\0" in text:
            raise ValueError(
                f"{key}={text[:60]!r} holds a NUL character, at which an MP4's metadata would end; "
                "remove it or set output.format=png"
            )
    return dict(metadata)


def url(path: Path) -> str:
    """FFmpeg would take the part of a bare name before a colon for a protocol."""
    return f"file:{path}"
