"""Whether a clip shows what its prompt asks for: how many things of which looks, on what ground."""

from itertools import permutations

from ..world.backdrop import Backdrop
from ..world.scene import Ground, Scene, Thing
from ..world.track import Track, Tracked

_MOST_TRACKS = 6  # looked at: no scene has more than three things

Pairs = list[tuple[Thing, Track]]


def prompt_kept(scene: Scene, tracked: Tracked) -> dict[str, float]:
    """Shares: `count` and `ground` are right or wrong, `colour` and `shape` are of the things.

    A thing has its shape only if it has its colour too; a thing too many counts against both.
    `prompt` is the mean of the four, `prompt_whole` whether all of them are right.
    """
    pairs = pair(scene, tracked)
    most = max(len(scene.things), len(tracked.things))
    parts = {
        "count": float(len(tracked.things) == len(scene.things)),
        "colour": sum(thing.colour == one.colour for thing, one in pairs) / most,
        "shape": sum(_same(thing, one, "colour shape") for thing, one in pairs) / most,
        "ground": float(_same_ground(scene.ground, tracked.backdrop)),
    }
    return {
        "prompt": sum(parts.values()) / len(parts),
        "prompt_whole": float(min(parts.values()) == 1),
        **parts,
    }


def pair(scene: Scene, tracked: Tracked) -> Pairs:
    """Which track is which thing of the prompt: colours first, then shapes, then sizes."""
    tracks = sorted(tracked.things, key=lambda one: -one.presence)[:_MOST_TRACKS]
    asked: list[Thing | None] = [*scene.things]
    asked += [None] * (len(tracks) - len(asked))
    choices = (
        [(thing, one) for thing, one in zip(order, tracks, strict=False) if thing is not None]
        for order in permutations(asked, len(tracks))
    )
    return max(choices, key=lambda pairs: sum(_likeness(thing, one) for thing, one in pairs))


def _likeness(thing: Thing, one: Track) -> float:
    return (
        100 * _same(thing, one, "colour")
        + 10 * _same(thing, one, "shape")
        + _same(thing, one, "size")
    )


def _same(thing: Thing, one: Track, names: str) -> bool:
    seen = dict(zip(("size", "colour", "shape"), one.looks, strict=True))
    return all(getattr(thing, name) == seen[name] for name in names.split())


def _same_ground(asked: Ground, seen: Backdrop) -> bool:
    if asked.kind != seen.kind:
        return False
    if asked.kind == "checkered":  # of checks, neither comes first
        return sorted(asked.colours) == sorted(seen.colours)
    if asked.kind == "gradient" and asked.across != seen.across:
        return False
    return asked.colours == seen.colours
