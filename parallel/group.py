"""Devices that exchange pieces of tensors in step: a process group with a name and an end.

All members call the same exchanges in the same order. A group of its own for every line of devices
and every epoch, for the reasons of gloo_link.py; nothing here touches torch's default group.
"""

import contextlib
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.distributed import (  # type: ignore[attr-defined]  # its stubs hide the stores
    PrefixStore,
    ProcessGroupGloo,
    TCPStore,
    Work,
)

from .gloo_link import in_short, own_address
from .link import LinkClosed
from .nccl_link import missing_for_nccl

_NOTHING = 7  # tag of a message that never comes
_POLL_S = 0.005
_ABORT_S = 5.0

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


class Exchange:
    """Pieces under way: `wait` gives what came, by the rank that sent it."""

    def __init__(
        self, group: "Group", work: Work | None, buffers: tuple[Tensor, Tensor], came: list[Tensor]
    ) -> None:
        self._group, self._work, self._buffers, self._came = group, work, buffers, came

    def wait(self) -> list[Tensor]:
        if self._work is not None:
            with self._group.named_errors():
                self._work.wait()
        del self._buffers  # the sent one had to live as long
        return self._came


class Group:
    """One member's side. One thread exchanges, any may close; LinkClosed is the only error."""

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
        """`pieces[i]` goes to rank i, and `shapes[i]` is what comes from there; all of one dtype.

        A piece without elements is not sent. What a rank has for itself stays where it is.
        """
        spec, mine = self.spec, pieces[self.spec.rank]
        assert len(pieces) == len(shapes) == spec.num, (len(pieces), len(shapes), spec)
        going = [x.reshape(-1) if i != spec.rank else x.new_empty(0) for i, x in enumerate(pieces)]
        sent = torch.cat(going).view(torch.uint8)
        sizes = [
            0 if i == spec.rank else math.prod(shape) * mine.element_size()
            for i, shape in enumerate(shapes)
        ]
        device = mine.device if spec.kind == "nccl" else torch.device("cpu")
        sent = sent.to(device)
        received = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
        with self.named_errors():
            work: Work = self._met().alltoall_base(
                received, sent, sizes, [x.numel() * x.element_size() for x in going]
            )
        self._last = work
        self.sent_bytes += len(sent)
        if spec.kind == "gloo" and mine.is_cuda:
            with self.named_errors():
                work.wait()
            received = received.to(mine.device)
        runs = torch.split(received, sizes)
        came = [
            mine if i == spec.rank else run.view(mine.dtype).view(shape)
            for i, (run, shape) in enumerate(zip(runs, shapes, strict=True))
        ]
        return Exchange(self, work, (sent, received), came)

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
    def named_errors(self) -> Any:
        self._check()
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, LinkClosed):
                raise
            self._end(f"a device of the stage is gone or stopped ({in_short(error)})")
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
        spec, timeout = self.spec, timedelta(seconds=self.spec.timeout_s)
        store = PrefixStore(
            spec.name,
            TCPStore(
                spec.host, spec.port, is_master=False, wait_for_workers=False, timeout=timeout
            ),
        )
        store.set(f"came{spec.rank}", "")
        deadline_s = time.monotonic() + spec.timeout_s
        while absent := [i for i in range(spec.num) if not store.check([f"came{i}"])]:
            self._check()
            if time.monotonic() > deadline_s:
                who = ", ".join(str(i + 1) for i in absent)
                self._end(f"device {who} of {spec.num} did not come within {spec.timeout_s:g} s")
            time.sleep(_POLL_S)
        if spec.kind == "nccl":
            kind = torch.distributed.ProcessGroupNCCL
            options = kind.Options()
            options._timeout = timedelta(days=3650)  # `settle` says when it is too long
            return kind(store, spec.rank, spec.num, options)
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [
            ProcessGroupGloo.create_device(hostname=own_address(spec.host, spec.port))
        ]
        options._timeout = timeout
        options._threads = 1
        return ProcessGroupGloo(store, spec.rank, spec.num, options)

    def _end(self, reason: str) -> None:
        """For the first reason given."""
        with self._lock:
            if self._reason:
                return
            self._reason = reason
            made, self._made = self._made, None
        if made is None:
            return
        if self.spec.kind == "nccl":
            thread = threading.Thread(target=made.abort, name="group abort", daemon=True)
            thread.start()
            thread.join(_ABORT_S)
            return
        # as in gloo_link.py: one wait that times out closes the connections under all others
        with contextlib.suppress(RuntimeError):
            nothing = torch.empty(1, dtype=torch.uint8)
            other = (self.spec.rank + 1) % self.spec.num
            made.recv([nothing], other, _NOTHING).wait(timedelta(milliseconds=1))
