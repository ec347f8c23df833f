"""Devices that exchange pieces of tensors in step: a process group with a name and an end.

All members call the same exchanges in the same order. A group of its own for every line of devices
and every epoch, for the reasons of gloo_link.py; nothing here touches torch's default group.
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.distributed import (  # type: ignore[attr-defined]  # its stubs hide the stores
    PrefixStore,
    Work,
)

from ..configs.errors import is_memory
from .gloo_link import agreed, cut_gloo, in_short, make_gloo, own_address
from .link import LinkClosed, find_store
from .nccl_link import abort_nccl, missing_for_nccl

_NOTHING = 7  # tag of a message that never comes
_POLL_S = 0.005
_GONE_S = 1.0  # to tell others that this one will not come

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class GroupSpec:
    """One line of devices in one epoch; its members differ in `rank` alone."""

    kind: str  # "nccl" between GPUs, "gloo" through the host's memory
    name: str  # render/epoch/line; never used twice
    rank: int
    num: int
    host: str  # of the coordinator's Rendezvous
    port: int
    timeout_s: float  # for the members to meet, and for each to come to an exchange

    def __post_init__(self) -> None:
        assert self.kind in ("nccl", "gloo"), self
        assert 0 <= self.rank < self.num, self


class Parcel:
    """One rank's pieces for the others as the bytes that an all-to-all takes.

    `pieces[i]` goes to rank i, and what comes from there has shape `shapes[i]`; all are of one
    dtype. What a rank has for itself stays where it is.
    """

    def __init__(
        self, pieces: Sequence[Tensor], shapes: Sequence[Shape], rank: int, device: torch.device
    ) -> None:
        self._mine, self._shapes, self._rank = pieces[rank], shapes, rank
        others = [x.reshape(-1) if i != rank else x.new_empty(0) for i, x in enumerate(pieces)]
        size = self._mine.element_size()
        self.sent = torch.cat(others).view(torch.uint8).to(device)
        self.sent_sizes = [x.numel() * size for x in others]
        self.sizes = [math.prod(s) * size if i != rank else 0 for i, s in enumerate(shapes)]
        self.received = torch.empty(sum(self.sizes), dtype=torch.uint8, device=device)

    def opened(self) -> list[Tensor]:
        """What came, by the rank that sent it."""
        mine = self._mine
        runs = torch.split(self.received.to(mine.device), self.sizes)
        return [
            mine if i == self._rank else run.view(mine.dtype).view(shape)
            for i, (run, shape) in enumerate(zip(runs, self._shapes, strict=True))
        ]


class Exchange:
    """A parcel under way."""

    def __init__(self, group: "Group", work: Work, parcel: Parcel) -> None:
        self._group, self._work, self._parcel = group, work, parcel

    def wait(self) -> list[Tensor]:
        with self._group.named_errors():
            self._work.wait()
        return self._parcel.opened()


class Group:
    """One member's side. One thread exchanges, any may close; LinkClosed is the only error, but for
    want of a GPU's memory."""

    def __init__(self, spec: GroupSpec) -> None:
        if spec.kind == "nccl" and (missing := missing_for_nccl()):
            raise ValueError(
                f"group {spec.name} is to go over NCCL, and {missing}; set parallel.link=host, "
                "which takes tensors through the memory of the machines"
            )
        self.spec = spec
        self.sent_bytes = 0  # to other ranks
        self._made: Any = None  # a process group, whose stub lacks alltoall_base
        self._last: Work | None = None
        self._reason = ""
        self._lock = threading.Lock()

    def exchange(self, pieces: Sequence[Tensor], shapes: Sequence[Shape]) -> Exchange:
        """See Parcel. All members call it, also those with nothing to send or to get."""
        assert len(pieces) == len(shapes) == self.spec.num, (len(pieces), len(shapes), self.spec)
        device = pieces[0].device if self.spec.kind == "nccl" else torch.device("cpu")
        parcel = Parcel(pieces, shapes, self.spec.rank, device)
        with self.named_errors():
            work: Work = self._met().alltoall_base(
                parcel.received, parcel.sent, parcel.sizes, parcel.sent_sizes
            )
        self._last = work
        self.sent_bytes += len(parcel.sent)
        return Exchange(self, work, parcel)

    def swap(self, pieces: Sequence[Tensor], shapes: Sequence[Shape]) -> list[Tensor]:
        return self.exchange(pieces, shapes).wait()

    def settle(self) -> None:
        """All exchanges so far are over; on a GPU nothing else would notice that a peer is gone."""
        deadline_s = time.monotonic() + self.spec.timeout_s
        last, self._last = self._last, None
        while last is not None and self.spec.kind == "nccl" and not last.is_completed():
            self._check()
            if time.monotonic() > deadline_s:
                self._end(f"an exchange took more than {self.spec.timeout_s:g} s")
                self._check()
            time.sleep(_POLL_S / 10)

    def close(self) -> None:
        """From any thread, any number of times: whoever waits, here or there, has LinkClosed."""
        self._end("closed here")

    @contextlib.contextmanager
    def named_errors(self) -> Iterator[None]:
        """What torch raises ends the group; LinkClosed says what it was."""
        self._check()
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, LinkClosed):
                raise
            self._end(f"a device of the stage is gone or stopped ({in_short(error)})")
            if is_memory(error):
                raise
            self._check()

    def _check(self) -> None:
        if self._reason:
            raise LinkClosed(f"group {self.spec.name}: {self._reason}")

    def _met(self) -> Any:
        """Not before the first exchange, as members are made one after the other."""
        if self._made is None:
            made = self._meet()
            with self._lock:
                self._check()
                self._made = made
        return self._made

    def _meet(self) -> Any:
        spec = self.spec
        try:
            store = self._find_store(spec.timeout_s, self._check)
        except LinkClosed:
            raise
        except RuntimeError as error:
            reason = f"no rendezvous at {spec.host}:{spec.port} ({in_short(error)})"
            raise LinkClosed(f"group {spec.name}: {reason}") from None
        store.set(f"came{spec.rank}", "")
        deadline_s = time.monotonic() + spec.timeout_s
        while absent := [i for i in range(spec.num) if not store.check([f"came{i}"])]:
            if gone := [i for i in absent if store.check([f"gone{i}"])]:
                self._end(f"device {gone[0] + 1} of {spec.num} has left before it came")
            if time.monotonic() > deadline_s:
                who = ", ".join(str(i + 1) for i in absent)
                self._end(f"device {who} of {spec.num} did not come within {spec.timeout_s:g} s")
            if self._reason:
                if agreed(store, "part"):
                    self._check()
                break  # the others are on their way in, and would be there alone
            time.sleep(_POLL_S)
        if not agreed(store, "meet"):
            self._end("a device of it has left before all had met")
            self._check()
        if spec.kind == "nccl":
            kind = torch.distributed.ProcessGroupNCCL
            options = kind.Options()
            options._timeout = timedelta(days=3650)  # `settle` says when it is too long
            return kind(store, spec.rank, spec.num, options)
        address = own_address(spec.host, spec.port)
        return make_gloo(store, spec.rank, spec.num, address, spec.timeout_s)

    def _find_store(self, timeout_s: float, check: Callable[[], None]) -> PrefixStore:
        spec = self.spec
        return PrefixStore(spec.name, find_store(spec.host, spec.port, timeout_s, check))

    def _end(self, reason: str) -> None:
        """For the first reason given."""
        with self._lock:
            if self._reason:
                return
            self._reason = reason
            made, self._made = self._made, None
        if made is None:
            with contextlib.suppress(RuntimeError):  # the rendezvous is over
                self._find_store(_GONE_S, lambda: None).set(f"gone{self.spec.rank}", "")
            return
        if self.spec.kind == "nccl":
            abort_nccl(made)
        else:
            cut_gloo(made, (self.spec.rank + 1) % self.spec.num, _NOTHING)
