"""Frames go to a hidden name beside the target, which they take once complete and on disk."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..configs.schema import OutputConfig
from .home.durable import written_aside
from .mp4 import Mp4Encoder
from .png import PngEncoder
from .target import check_size, check_target


class Writer(Protocol):
    """Takes the frames of a video in order, as they are made."""

    @property
    def frames_written(self) -> int: ...

    def write(self, frames: npt.NDArray[np.uint8]) -> None:
        """n x height x width x 3; the array may be used again at once."""


@contextmanager
def open_writer(
    path: Path,
    *,
    height: int,
    width: int,
    fps: int,
    output: OutputConfig,
    metadata: Mapping[str, str],
) -> Iterator[Writer]:
    """The video appears at `path` when the block ends, whole; if it raises, nothing changes.

    A file that is there is replaced; a folder that holds anything is an error before the block.
    """
    check_target(path, output)
    check_size(output, height=height, width=width)
    encoder: Mp4Encoder | PngEncoder
    with written_aside(path) as part:
        if output.format == "png":
            encoder = PngEncoder(part, height=height, width=width, metadata=metadata)
        else:
            encoder = Mp4Encoder(
                part, height=height, width=width, fps=fps, output=output, metadata=metadata
            )
        try:
            yield encoder
            _check_any(path, encoder)
            encoder.finish()
        finally:
            encoder.close()


def _check_any(path: Path, writer: Writer) -> None:
    if writer.frames_written == 0:
        raise ValueError(
            f"output={path} was given no frame, so there is no video to write; "
            "write at least one before the writer is closed"
        )
