"""A folder of numbered PNG pictures beside config.yaml: written from RGB frames, and read back."""

from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

METADATA_NAME = "config.yaml"


class PngEncoder:
    """One folder being filled: 00000.png, 00001.png and so on, and what the video was made from."""

    def __init__(
        self, folder: Path, *, height: int, width: int, metadata: Mapping[str, str]
    ) -> None:
        import av

        self.frames_written = 0
        self._folder = folder
        self._shape = (height, width, 3)
        self._codec = av.VideoCodecContext.create("png", "w")
        self._codec.height, self._codec.width = height, width
        self._codec.pix_fmt = "rgb24"
        self._codec.time_base = Fraction(1, 1)  # asked for, but a picture has no time
        self._codec.thread_count = 1  # with more, a frame's picture comes out some frames later
        folder.mkdir()
        (folder / METADATA_NAME).write_bytes(_to_yaml(metadata).encode())

    def write(self, frames: npt.NDArray[np.uint8]) -> None:
        import av

        assert frames.dtype == np.uint8, frames.dtype
        assert frames.shape[1:] == self._shape, (frames.shape, self._shape)
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts = self.frames_written
            (packet,) = self._codec.encode(picture)
            (self._folder / f"{self.frames_written:05d}.png").write_bytes(bytes(packet))
            self.frames_written += 1


def decode_png(folder: Path) -> Iterator[npt.NDArray[np.uint8]]:
    """The frames of a folder that PngEncoder filled, height x width x 3, one at a time."""
    import av

    # by number, because 100000.png sorts before 99999.png
    for path in sorted(folder.glob("*.png"), key=lambda path: int(path.stem)):
        # a new one each: a decoder adds a second picture to the first, as animations do
        codec = av.VideoCodecContext.create("png", "r")
        codec.thread_count = 1
        (picture,) = codec.decode(av.Packet(path.read_bytes()))
        yield picture.to_ndarray(format="rgb24").astype(np.uint8, copy=False)


def read_png_metadata(folder: Path) -> dict[str, str]:
    """What PngEncoder was given."""
    import yaml

    values: dict[str, str] = yaml.safe_load((folder / METADATA_NAME).read_bytes())
    return values


def _to_yaml(metadata: Mapping[str, str]) -> str:
    """Long texts as indented blocks that a person can read."""
    import yaml

    class BlockDumper(yaml.SafeDumper):  # type: ignore[misc]
        pass

    def represent(dumper: Any, text: str) -> Any:
        style = "|" if "\n" in text else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    values = dict(metadata)
    BlockDumper.add_representer(str, represent)
    text: str = yaml.dump(values, Dumper=BlockDumper, allow_unicode=True, sort_keys=False)
    if yaml.safe_load(text) == values:
        return text
    # PyYAML takes some characters for line breaks unless they are escaped, as all Unicode is here
    escaped: str = yaml.safe_dump(values, sort_keys=False)
    return escaped
