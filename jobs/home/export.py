"""The finished file of a render: its segments joined without coding them anew, or its pictures."""

import io
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from ...configs.schema import Config
from ..mp4 import checked, muxer_options, url
from ..png import PngEncoder
from .durable import written_aside
from .segments import Segment, decode_segments, read_start


def export(
    init: Path,
    segments: Sequence[Segment],
    output: Path,
    config: Config,
    metadata: Mapping[str, str],
) -> None:
    """`output` appears when it is complete; what was there is replaced."""
    with written_aside(output) as part:
        if config.output.format == "png":
            _write_pictures(init, segments, part, config, metadata)
        else:
            _join(init, segments, part, config.video.fps, metadata)


def _join(
    init: Path, segments: Sequence[Segment], path: Path, fps: int, metadata: Mapping[str, str]
) -> None:
    import av

    with av.open(url(path), "w", format="mp4", options=muxer_options(fps)) as container:
        container.metadata.update(checked(metadata))
        stream: Any = None
        for packet in _packets(init, segments):
            if stream is None:
                stream = container.add_stream_from_template(packet.stream)
                stream.time_base = Fraction(1, fps)
            packet.stream = stream
            container.mux(packet)


def _packets(init: Path, segments: Sequence[Segment]) -> Iterator[Any]:
    import av

    start = read_start(init)
    for segment in segments:
        with av.open(io.BytesIO(start + segment.read())) as container:
            for packet in container.demux(video=0):
                if packet.size:  # the last one says that there are no more
                    yield packet


def _write_pictures(
    init: Path,
    segments: Sequence[Segment],
    path: Path,
    config: Config,
    metadata: Mapping[str, str],
) -> None:
    encoder = PngEncoder(
        path, height=config.video.height, width=config.video.width, metadata=metadata
    )
    for frame in decode_segments(init, segments, config.output):
        encoder.write(frame[None])
