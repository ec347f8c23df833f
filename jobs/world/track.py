"""Things followed through a clip: patches of one colour linked over time, with no other knowledge.

Of a colour there are as many tracks as whole things were ever seen at once. A track goes on for as
long as its colour is seen: a thing that leaves and enters again, or that jumps, stays itself.
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from .backdrop import Backdrop, find_backdrop
from .sight import Sighting, sightings

HUNDRED = 100  # frames: what a thing first is, and how long it may be out of sight
_MEMORY = 5  # frames that a velocity is taken from
_MOST_PATCHES = 6  # of a colour in a frame: noise has hundreds
_MERGED = 1.2  # times a thing's area: then it is two of its colour
_LEAST_PRESENCE = 0.25  # of the frames that want it: what shows for less is no thing of the clip
LEAST_JUDGED = 3  # frames that show all of it


@dataclass(kw_only=True, eq=False)
class Track:
    """One thing. What is derived is asked for when all has been seen."""

    colour: str
    num_frames: int
    seen: dict[int, Sighting] = field(default_factory=dict)  # by frame, in order
    merged: set[int] = field(default_factory=set)  # frames that show it and one like it as one

    @cached_property
    def looks(self) -> tuple[str, str, str | None]:
        """Size, colour and shape in most of the first hundred frames that show it."""
        alone = [s for t, s in self.seen.items() if t not in self.merged]
        known = [s for s in alone if s.plain] or [s for s in alone if s.shape is not None]
        early = [s for s in known if s.frame < HUNDRED] or known
        if not early:
            return "", self.colour, None
        size, shape = Counter((s.size, s.shape) for s in early).most_common(1)[0][0]
        return size, self.colour, shape

    @cached_property
    def kept(self) -> dict[int, bool]:
        """By frame, whether it looks as it first did; without frames that hide a part of it.

        What has no shape has none to keep.
        """
        verdicts = {}
        for t, s in self.seen.items():
            same = s.shape is not None and (s.size, s.colour, s.shape) == self.looks
            # what looks different beside a thing, or at the edge, may only be half seen
            if t not in self.merged and (s.plain or same):
                verdicts[t] = same
        return verdicts

    @cached_property
    def clear(self) -> dict[int, Sighting]:
        """Frames in which its place can be measured."""
        return {t: self.seen[t] for t in self.kept if self.seen[t].plain}

    @cached_property
    def lost(self) -> list[int]:
        """Frames without it although it was last, and is next, in plain view.

        At the edge, behind a thing or in one with its like, it may be gone for a hundred frames.
        """
        shown = sorted({*self.seen, *self.merged})
        lost = []
        for before, after in zip([-1, *shown], [*shown, self.num_frames], strict=True):
            ends = [t for t in (before, after) if 0 <= t < self.num_frames and self._may_go(t)]
            for t in range(before + 1, after):
                if all(abs(t - end) > HUNDRED for end in ends):
                    lost.append(t)
        return lost

    @property
    def presence(self) -> float:
        """In how many of the frames that want it, it is."""
        shown = len({*self.seen, *self.merged})
        return shown / max(1, shown + len(self.lost))

    def expected(self, t: int) -> tuple[float, float]:
        """Where it is in frame t if it goes on as it went."""
        last, *past = islice(reversed(self.seen.values()), _MEMORY + 1)
        first = next((s for s in reversed(past) if last.frame - _MEMORY <= s.frame), last)
        steps = max(1, last.frame - first.frame)
        ahead = (t - last.frame) / steps
        return last.x + ahead * (last.x - first.x), last.y + ahead * (last.y - first.y)

    def _may_go(self, t: int) -> bool:
        return t in self.merged or self.seen[t].cut or self.seen[t].touching


@dataclass(frozen=True, kw_only=True, eq=False)
class Tracked:
    """What a clip shows."""

    num_frames: int
    things: tuple[Track, ...]
    backdrop: Backdrop


def track(frames_THWC: np.ndarray[Any, Any]) -> Tracked:
    """Everything that can be told of a clip from its bytes, T H W C."""
    backdrop = find_backdrop(frames_THWC)
    seen = sightings(frames_THWC, backdrop)
    tracks = []
    for colour in sorted({s.colour for frame in seen for s in frame}):
        alike = _link([[s for s in frame if s.colour == colour] for frame in seen], colour)
        _find_merged(alike)
        tracks += alike
    return Tracked(
        num_frames=len(frames_THWC),
        things=tuple(
            one
            for one in tracks
            if one.presence >= _LEAST_PRESENCE and len(one.kept) >= LEAST_JUDGED
        ),
        backdrop=backdrop,
    )


def _link(frames: list[list[Sighting]], colour: str) -> list[Track]:
    """Tracks of one colour: the nearest pairs first, whatever the distance."""
    tracks: list[Track] = []
    for t, patches in enumerate(frames):
        free = sorted(patches, key=lambda s: -s.radius)[:_MOST_PATCHES]
        idle = list(tracks)
        places = {id(one): one.expected(t) for one in idle}
        while free and idle:
            one, patch = min(
                ((one, patch) for one in idle for patch in free),
                key=lambda pair: np.hypot(
                    pair[1].x - places[id(pair[0])][0], pair[1].y - places[id(pair[0])][1]
                ),
            )
            one.seen[t] = patch
            idle.remove(one)
            free.remove(patch)
        for patch in free:
            # what is left over may be a part of a thing, unless it is one
            if not tracks or patch.shape is not None:
                tracks.append(Track(colour=colour, num_frames=len(frames), seen={t: patch}))
    return tracks


def _find_merged(alike: list[Track]) -> None:
    """Mark the frames in which two tracks of a colour are one patch."""
    areas = [_areas(one) for one in alike]
    if len(alike) < 2 or not all(areas):
        return
    own = min(float(np.median(area)) for area in areas)
    for one in alike:
        for run in _runs(sorted({*range(one.num_frames)} - {*one.seen})):
            for other in alike:
                shown = [t for t in run if t in other.seen]
                if any(other.seen[t].radius ** 2 > _MERGED * own for t in shown):
                    one.merged.update(shown)
                    other.merged.update(shown)


def _areas(one: Track) -> list[float]:
    """Of all of it: seen with a shape, as things that always touch are never plain."""
    whole = [s for s in one.seen.values() if s.shape is not None and not s.cut]
    return [s.radius**2 for s in whole or [s for s in one.seen.values() if s.plain]]


def _runs(frames: list[int]) -> list[list[int]]:
    """Frames without a gap, together."""
    runs: list[list[int]] = []
    for t in frames:
        if not runs or runs[-1][-1] != t - 1:
            runs.append([])
        runs[-1].append(t)
    return runs
