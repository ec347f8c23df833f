"""The contact sheet of a batch: a frame of each video, from its middle."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from ...configs.errors import first_line
from ..home.durable import written_aside

_log = logging.getLogger("longreel")

_SIDE = 240
_MOST = 400  # pictures; more would be no sheet to look at


def write_sheet(path: Path, videos: Sequence[Path]) -> None:
    from PIL import Image

    pictures = [_picture(video) for video in videos[:_MOST]]
    columns = math.ceil(math.sqrt(len(pictures)))
    width = max(picture.width for picture in pictures)
    height = max(picture.height for picture in pictures)
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * width, rows * height))
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % columns * width, number // columns * height))
    with written_aside(path) as part:
        sheet.save(part, "JPEG", quality=90)


def _picture(video: Path):  # type: ignore[no-untyped-def]
    """Of the middle; a dark one keeps the place of a video that is damaged."""
    import av
    from PIL import Image

    try:
        return _middle(video)
    except (av.FFmpegError, IndexError, ValueError) as error:
        _log.warning(
            "%s cannot be shown on the contact sheet, as it is damaged (%s); remove it, and the "
            "same batch makes it again",
            video,
            first_line(error),
        )
        return Image.new("RGB", (1, 1))


def _middle(video: Path):  # type: ignore[no-untyped-def]
    import av

    with av.open(str(video)) as file:
        stream = file.streams.video[0]
        times = sorted(packet.pts for packet in file.demux(stream) if packet.size)
        middle = times[len(times) // 2]
        file.seek(middle, stream=stream)  # to the segment that it is in: half a film takes minutes
        for frame in file.decode(stream):
            if frame.pts >= middle:
                picture = frame.to_image()
                picture.thumbnail((_SIDE, _SIDE))  # here: at their full size 400 are gigabytes
                return picture
    raise ValueError(f"{video} has no frame")
