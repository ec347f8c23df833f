"""What tests of links share: their kinds, and both ends, here and in a process of its own."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from multiprocessing.context import BaseContext

import link_peer
import pytest
import torch
from link_peer import Peer

from longreel.parallel.link import LinkSpec, Rendezvous
from longreel.parallel.nccl_link import missing_for_nccl

PLAIN = ["local", "gloo", "shm"]
NCCL = pytest.param(
    "nccl",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(
            bool(missing_for_nccl()) or torch.cuda.device_count() < 2,
            reason="NCCL joins two CUDA devices, and here are not two",
        ),
    ],
)
# the same link with gloo in the place of NCCL, which shows all of it but NCCL
WORDS_APART = "words apart"
KINDS = [*PLAIN, WORDS_APART, NCCL]
BETWEEN_PROCESSES = ["gloo", "shm", WORDS_APART, NCCL]
SIDES = ["sender", "receiver"]
names = count()


def make_spec(
    kind: str, rendezvous: Rendezvous, timeout_s: float = 20, credits: int = 2
) -> LinkSpec:
    apart = kind == WORDS_APART
    return LinkSpec(
        kind="nccl" if apart else kind,
        name=f"render/0/{next(names)}{link_peer.APART if apart else ''}",
        host=rendezvous.host,
        port=rendezvous.port,
        credits=credits,
        timeout_s=timeout_s,
    )


@contextmanager
def another(context: BaseContext) -> Iterator[Peer]:
    peer = Peer(context)
    try:
        peer.call(link_peer.num_sent, "")
        yield peer
    finally:
        link_peer.close_all()
        peer.stop()


def join(peer: Peer, spec: LinkSpec, side: str) -> str:
    """Opens `side` here and the other over there; the name of the other."""
    other = SIDES[1 - SIDES.index(side)]
    link_peer.open_end(spec, side)
    peer.call(link_peer.open_end, spec, other)
    return other


def eventually(condition: Callable[[], bool]) -> bool:
    end_s = time.monotonic() + 10
    while not condition() and time.monotonic() < end_s:
        time.sleep(0.01)
    return condition()


def seconds(since: float) -> float:
    return time.monotonic() - since
