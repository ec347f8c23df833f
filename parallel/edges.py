"""What joins the actors of a render: links to a ring and a second chain, groups in each stage."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from .group import GroupSpec
from .layout import Layout
from .link import LinkSpec
from .messages import Stamp


@dataclass(frozen=True, kw_only=True)
class Edges:
    """The links and groups of one actor in one epoch; none where it has no such neighbour."""

    stamp: Stamp
    timeout_s: float  # how long one actor may keep another waiting
    inlet: LinkSpec | None = None  # of activations, or of windows made elsewhere
    outlet: LinkSpec | None = None  # of activations
    ring: LinkSpec | None = None  # first: of latents, from the last
    home: LinkSpec | None = None  # last: of latents, to the first
    peers: tuple[LinkSpec, ...] = ()  # first: of windows, to the others of its stage
    forks: tuple[LinkSpec, ...] = ()  # first: of windows, to the unconditional branch's first ones
    merge_out: LinkSpec | None = None  # last of the unconditional branch: of its predictions
    merge_in: LinkSpec | None = None  # last: of those
    shards: GroupSpec | None = None  # of the stage: those round which keys and values go
    heads: GroupSpec | None = None  # those that exchange tokens for heads


def wire(
    layout: Layout, stamp: Stamp, timeout_s: float, link: Callable[[int, int], LinkSpec]
) -> list[Edges]:
    """The edges of every actor, in the order of seats; `link` joins two of them by number."""
    mesh = layout.mesh
    edges = [Edges(stamp=stamp, timeout_s=timeout_s)] * mesh.size

    def give(number: int, name: str, spec: LinkSpec | GroupSpec) -> None:
        old = getattr(edges[number], name)
        value = (*old, spec) if isinstance(old, tuple) else spec
        edges[number] = replace(edges[number], **{name: value})  # type: ignore[arg-type]

    def join(start: int, stop: int, out: str, into: str) -> None:
        spec = link(start, stop)
        give(start, out, spec)
        give(stop, into, spec)

    for number in range(mesh.size):
        place = mesh.at(number)
        if place["stage"] + 1 < mesh.stage:  # each shard goes straight to where it goes on
            join(number, mesh.number(**place | {"stage": place["stage"] + 1}), "outlet", "inlet")
        for dim, name in (("ring", "shards"), ("ulysses", "heads")):
            line = mesh.line(number, dim)
            if len(line) > 1:
                give(
                    number,
                    name,
                    _group(link(*line[:2]), f"{dim}/{line[0]}", line.index(number), len(line)),
                )
    if mesh.stage > 1:
        join(layout.last, 0, "home", "ring")
    for share in range(1, layout.num_shares):
        join(0, share, "peers", "inlet")
    if mesh.cfg > 1:
        first = mesh.number(cfg=1)
        for share in range(layout.num_shares):
            join(0, first + share, "forks", "inlet")
        join(mesh.number(cfg=1, stage=mesh.stage - 1), layout.last, "merge_out", "merge_in")
    return edges


def _group(link: LinkSpec, line: str, rank: int, num: int) -> GroupSpec:
    """Of the devices of a line, joined as two of them are."""
    return GroupSpec(
        kind="nccl" if link.kind == "nccl" else "gloo",
        name=f"{link.name.rpartition('/')[0]}/{line}",
        rank=rank,
        num=num,
        host=link.host,
        port=link.port,
        timeout_s=link.timeout_s,
    )
