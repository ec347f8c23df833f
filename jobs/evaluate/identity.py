"""Whether each thing stays what it is: its colour, shape and size, from the first frames on."""

from itertools import pairwise

from ..world.track import HUNDRED, Track, Tracked

BINS = 20  # of a curve over the length of a clip


def identity_kept(tracked: Tracked) -> dict[str, float | None]:
    """Means over things of the share of frames in which each is what it was; none seen: 0.

    What it was is what most of the first hundred frames show. Judged are frames that show all of
    it, and those without it although it was in plain view before and after: these are failures. A
    thing that is hidden, at the edge, or one patch with its like is not judged. `identity_last`
    is the same over the last hundred frames alone.
    """
    last = range(max(0, tracked.num_frames - HUNDRED), tracked.num_frames)
    return {
        "identity": _mean([_share(one, range(tracked.num_frames)) for one in tracked.things]),
        "identity_last": _mean([_share(one, last) for one in tracked.things]),
    }


def identity_curve(tracked: Tracked) -> list[float | None]:
    """The same share in each twentieth of the clip; none where nothing is judged."""
    edges = [tracked.num_frames * i // BINS for i in range(BINS + 1)]
    curve = []
    for start, stop in pairwise(edges):
        shares = [_share(one, range(start, stop)) for one in tracked.things]
        judged = [share for share in shares if share is not None]
        curve.append(sum(judged) / len(judged) if judged else None)
    return curve


def _share(one: Track, frames: range) -> float | None:
    verdicts = [kept for t, kept in one.kept.items() if t in frames]
    verdicts += [False] * sum(t in frames for t in one.lost)
    return sum(verdicts) / len(verdicts) if verdicts else None


def _mean(shares: list[float | None]) -> float | None:
    if not shares:
        return 0.0
    judged = [share for share in shares if share is not None]
    return sum(judged) / len(judged) if judged else None
