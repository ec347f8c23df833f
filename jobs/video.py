"""A finished video: its frames, and what it was made from."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..configs.schema import Config
from .mp4 import decode_mp4, read_mp4_metadata
from .png import decode_png, read_png_metadata


@dataclass(frozen=True)
class Video:
    """A video on disk: an MP4 file, or a folder of PNG pictures."""

    path: Path
    config: Config
    num_frames: int
    fps: int

    @property
    def frames(self) -> Iterator[npt.NDArray[np.uint8]]:
        """Decoded one at a time, height x width x 3, from the first frame at each access.

        The file is open from the first frame asked for until the iterator ends or is dropped.
        """
        return decode_png(self.path) if self.path.is_dir() else decode_mp4(self.path)


def read_metadata(path: Path) -> dict[str, str]:
    """What the video was made from: configuration, prompt, seed, version, as they were written."""
    return read_png_metadata(path) if path.is_dir() else read_mp4_metadata(path)
