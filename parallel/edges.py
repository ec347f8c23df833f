"""Which links join the actors of a render: a ring of them, and a second chain beside it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from .layout import Layout
from .link import LinkSpec
from .messages import Stamp


@dataclass(frozen=True, kw_only=True)
class Edges:
    """The links of one actor in one epoch; none where it has no such neighbour."""

    stamp: Stamp
    timeout_s: float  # how long one actor may keep another waiting
    inlet: LinkSpec | None = None  # of activations, or of windows made elsewhere
    outlet: LinkSpec | None = None  # of activations
    ring: LinkSpec | None = None  # first: of latents, from the last
    home: LinkSpec | None = None  # last: of latents, to the first
    fork: LinkSpec | None = None  # first: of windows, to the unconditional branch's first
    merge_out: LinkSpec | None = None  # last of the unconditional branch: of its predictions
    merge_in: LinkSpec | None = None  # last: of those


def wire(
    layout: Layout, stamp: Stamp, timeout_s: float, link: Callable[[int, int], LinkSpec]
) -> list[Edges]:
    """The edges of every actor, in the order of seats; `link` joins two of them by number."""
    edges = [Edges(stamp=stamp, timeout_s=timeout_s)] * layout.num_devices

    def join(start: int, stop: int, out: str, into: str) -> None:
        spec = link(start, stop)
        edges[start] = replace(edges[start], **{out: spec})  # type: ignore[arg-type]
        edges[stop] = replace(edges[stop], **{into: spec})  # type: ignore[arg-type]

    length = layout.chain_length
    for first in range(0, layout.num_devices, length):
        for start in range(first, first + length - 1):
            join(start, start + 1, "outlet", "inlet")
    if length > 1:
        join(length - 1, 0, "home", "ring")
    if layout.num_branches > 1:
        join(0, length, "fork", "inlet")
        join(2 * length - 1, length - 1, "merge_out", "merge_in")
    return edges
