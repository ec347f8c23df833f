from collections.abc import Iterator

import link_peer
import pytest
from forked_ranks import forked_processes
from link_ends import another, make_spec
from link_peer import Peer

from longreel.parallel.link import LinkSpec, Rendezvous


@pytest.fixture(scope="module")
def rendezvous() -> Iterator[Rendezvous]:
    with Rendezvous("127.0.0.1") as store:
        yield store


@pytest.fixture(scope="module")
def peers() -> Iterator[dict[bool, Peer]]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        peers = {True: Peer(), False: Peer(forked_processes(monkeypatch))}
    peers[False].call(link_peer.num_sent, "")  # it has imported torch
    yield peers
    for peer in peers.values():
        peer.stop()


@pytest.fixture
def spec(kind: str, rendezvous: Rendezvous) -> LinkSpec:
    return make_spec(kind, rendezvous)


@pytest.fixture
def peer(kind: str, peers: dict[bool, Peer]) -> Iterator[Peer]:
    peer = peers[kind == "local"]
    yield peer
    link_peer.close_all()
    peer.call(link_peer.close_all)


@pytest.fixture
def mortal(monkeypatch) -> Iterator[Peer]:
    with another(forked_processes(monkeypatch)) as peer:
        yield peer
