"""Workers of a cluster that decode the same latents, each some of the VAE's tiles."""

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import ray

from .crew import GONE, Check, result
from .link import LinkClosed, LinkSpec, Rendezvous
from .messages import Stamp
from .placement import Placement, this_node
from .ray_worker import Build, RayWorker, WorkerLost
from .tiles import TileEdges


class RayTiles:
    """The driver's side: the first worker joins frames, and has others beside it for their tiles.

    What they build has the methods `share_tiles` and `decode_tiles` of a codec.
    """

    def __init__(
        self,
        placement: Placement,
        build: Build,
        check: Check,
        first: RayWorker,
        shares: Sequence[tuple[int, ...]],
        timeout_s: float,
        others: Sequence[RayWorker] = (),
    ) -> None:
        """`others`: those there are, from another render; how many are needed may differ."""
        self._first = first
        self._others = list(others)
        self._under_way: list[ray.ObjectRef[Any]] = []
        self._meeting = Rendezvous(this_node())
        stamp = Stamp(render=uuid.uuid4().hex[:12], epoch=0)
        links = tuple(
            LinkSpec(
                kind="gloo",
                name=f"{stamp.render}/{stamp.epoch}/tiles/{rank}",
                host=self._meeting.host,
                port=self._meeting.port,
                timeout_s=timeout_s,
            )
            for rank in range(1, len(shares))
        )
        try:
            for spare in self._others[len(shares) - 1 :]:
                spare.close()
            del self._others[len(shares) - 1 :]
            for other in self._others:
                other.renew(build)
            for rank in range(len(self._others) + 1, len(shares)):
                other = RayWorker(placement, build, check, timeout_s, first.hear, beside=rank)
                self._others.append(other)
            for rank, worker in enumerate([first, *self._others]):
                edges = TileEdges(
                    stamp=stamp,
                    rank=rank,
                    shares=tuple(shares),
                    links=links[rank - 1 : rank] if rank else links,
                )
                self._under_way.append(worker.start("share_tiles", edges))
        except BaseException:
            self.close()
            raise

    def stream(self, method: str, *args: object) -> Iterator[Any]:
        """Of the first worker, which joins all tiles; all begin with the call, on what
        `decode_tiles` takes."""
        for ref in self._over(0):
            with contextlib.suppress(Exception):  # whoever reads from the first one is told of it
                result(ref)
                self._under_way.remove(ref)
        self._under_way += [other.start("decode_tiles", *args) for other in self._others]
        return self._frames(self._first.stream(method, *args))

    def start(self, method: str, *args: object) -> None:
        """On every worker, behind the calls before it; nobody waits."""
        for worker in (self._first, *self._others):
            worker.start(method, *args)

    def call(self, method: str, *args: object) -> Any:
        """On every worker; the first one's answer."""
        answer, *_ = [worker.call(method, *args) for worker in (self._first, *self._others)]
        return answer

    def _frames(self, frames: Iterator[Any]) -> Iterator[Any]:
        try:
            yield from frames
        except LinkClosed as error:
            raise self._reason(error) from error

    def _reason(self, first: LinkClosed) -> BaseException:
        """Why a link of the first worker closed: what another raised, or that it is gone, or hangs,
        or that its end is not known yet."""
        for ref in self._over(1.0):
            try:
                result(ref)
            except LinkClosed:
                continue
            except GONE:
                return WorkerLost(
                    "a worker that decodes tiles was lost: its process ended; see Ray's logs for "
                    "the reason, which is often lack of memory",
                    self,
                )
            except BaseException as error:
                return error
        return WorkerLost(
            f"workers that decode tiles lost touch: {first}; raise parallel.transfer_timeout_s if "
            "a latent takes that long",
            self,
        )

    def _over(self, wait_s: float) -> "list[ray.ObjectRef[Any]]":
        """Calls that have ended, and not all of them well."""
        if not self._under_way:
            return []
        return ray.wait(self._under_way, num_returns=len(self._under_way), timeout=wait_s)[0]

    def has(self, worker: object) -> bool:
        """Whether it is one of these, or all of them."""
        return worker is self or worker in (self._first, *self._others)

    def leave(self) -> list[RayWorker]:
        """The others, for another render."""
        self._meeting.close()
        return self._others

    def close(self) -> None:
        for other in self._others:
            other.close()
        self._meeting.close()
