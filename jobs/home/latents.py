"""Clean latents of finished segments, a file each: what is made later of the video starts there.

B batch, C channels, T latents, H height, W width.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .checkpoints import load_tensors, save_tensors
from .place import resume_command
from .segments import Segment

_NAME = "latents"


def save_latents(path: Path, latents_BCTHW: Tensor, may: Callable[[], None]) -> str:
    """The digest of the file, which is on the disk; `may` as for `written_aside`."""
    path.parent.mkdir(exist_ok=True)
    return save_tensors(path, {_NAME: latents_BCTHW}, {}, may)


class KeptLatents:
    """Those of a video."""

    def __init__(self, segments: Sequence[Segment], frames_per_latent: int) -> None:
        self._segments = segments
        self._stride = frames_per_latent

    def count(self, frames: int) -> int:
        """Latents of so many frames from the start: the first is one frame."""
        return 1 + (frames - 1) // self._stride if frames else 0

    def read(self, start: int, stop: int) -> Tensor:
        """From one to before another. ValueError: a file of them is gone or damaged."""
        runs = []
        for segment in self._segments:
            first, behind = self.count(segment.first), self.count(segment.stop)
            if first < stop and start < behind:
                try:
                    _, tensors = load_tensors(segment.latents_path, segment.latents)
                except ValueError as error:
                    command = resume_command(segment.path.parents[1])
                    raise ValueError(
                        f"{error}, and the edit begins or ends there; put it back from a copy, or "
                        f"have frames {segment.first}..{segment.stop} made anew first, with "
                        f"`{command} --redo {segment.first}..{segment.stop}` (where the edit was "
                        f"asked for already, `{command} --drop` gives it up)"
                    ) from error
                latents_BCTHW = tensors[_NAME]
                assert latents_BCTHW.shape[2] == behind - first, "a latent is four frames"
                runs.append(latents_BCTHW[:, :, max(0, start - first) : stop - first])
        return torch.cat(runs, dim=2)
