"""An edit being made: what it reads of the video that is there, and how it ends in it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...pipeline.checkpoint import Checkpoint
from ...pipeline.plan import Plan
from ...pipeline.surroundings import Surroundings, opening
from .latents import KeptLatents
from .ledger import Edit
from .segments import Frames, Segment, decode_segments


class Splice:
    """One edit of one video, of which these segments are there."""

    def __init__(self, plan: Plan, edit: Edit, init: Path, segments: Sequence[Segment]) -> None:
        self._plan = plan
        self._edit = edit
        self._latents = KeptLatents(segments, plan.arch.vae.time_stride)
        behind = [s for s in segments if edit.fade <= s.first and s.stop <= edit.stop]
        self._old = [*decode_segments(init, behind, plan.config.output)] if behind else []

    def opening(self) -> Checkpoint:
        return opening(self._plan.schedule, self._edit.first, self._latents.read)

    def around(self) -> Surroundings:
        section, reach = self._edit.section, self._plan.arch.vae.decoder_reach
        behind = self._latents.count(self._edit.stop)
        return Surroundings(
            lead_BCTHW=self._latents.read(max(0, section.first - reach), section.first)
            if section.first
            else None,
            tail_BCTHW=self._latents.read(section.stop, behind) if section.stop < behind else None,
        )

    def blend(self, start: int, frames: Frames) -> Frames:
        """New frames from number `start` on, with as much of the old ones as belongs to each."""
        blended = frames.copy()
        for i in range(max(0, self._edit.fade - start), len(frames)):
            at = start + i - self._edit.fade
            share = (at + 1) / (len(self._old) + 1)
            mixed = (1 - share) * frames[i] + share * self._old[at]
            blended[i] = np.rint(mixed).astype(np.uint8)
        return blended
