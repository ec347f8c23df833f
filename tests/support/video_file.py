"""The file of a render with these frames, made as renders make it: coded in segments, joined."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from longreel.configs.schema import Config, OutputConfig, VideoConfig
from longreel.jobs.home.export import export
from longreel.jobs.home.segments import Segment, digest, encode_segment


def save(path, frames, output=None, *, metadata=None, fps=16, cuts=()):
    """`cuts`: frames that a segment begins with, besides the first."""
    output, (num, height, width, _) = output or OutputConfig(), frames.shape
    video = VideoConfig(height=height, width=width, frames=num, fps=fps)
    with TemporaryDirectory() as home:
        folder = Path(home) / "renders" / "one"
        (folder / "segments").mkdir(parents=True)
        init, segments, first = folder / "init.mp4", [], 0
        for number, part in enumerate(np.split(frames, cuts)):
            start, fragments = encode_segment([part], first, fps=fps, output=output)
            file = folder / "segments" / f"{number}.m4s"
            init.write_bytes(start)
            file.write_bytes(fragments)
            segments.append(
                Segment(
                    number=number,
                    first=first,
                    frames=len(part),
                    blocks=(number, number + 1),
                    path=file,
                    bytes=len(fragments),
                    digest=digest(fragments),
                )
            )
            first += len(part)
        export(init, segments, path, Config(video=video, output=output), metadata or {})
    return path
