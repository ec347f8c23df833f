"""Where links meet: who can reach it, and who is asked about those who do."""

import socket
import threading
import time
from contextlib import closing
from datetime import timedelta

import pytest
from link_ends import make_spec, seconds
from torch.distributed import TCPStore

from longreel.parallel import link as links
from longreel.parallel.link import LinkClosed, Rendezvous, open_receiver, open_sender


def visit(meeting: Rendezvous) -> TCPStore:
    timeout = timedelta(seconds=10)
    return TCPStore(meeting.host, meeting.port, wait_for_workers=False, timeout=timeout)


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


IPV6 = pytest.param("::1", marks=pytest.mark.skipif(not has_ipv6(), reason="needs the address ::1"))


@pytest.mark.parametrize("host", ["127.0.0.1", IPV6, "localhost"])
def test_it_is_found_at_its_address(host):
    with Rendezvous(host) as meeting:
        visit(meeting).set("word", "of one")
        assert visit(meeting).get("word") == b"of one"


def test_it_is_heard_nowhere_else():
    with Rendezvous("127.0.0.1") as meeting, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", meeting.port), timeout=10)


def test_behind_a_router_it_is_heard_wherever_the_machine_is():
    with links._listen("192.0.2.1") as listening:  # of no machine
        socket.create_connection(("127.0.0.2", listening.getsockname()[1]), timeout=10).close()


def test_its_port_is_free_afterwards():
    with Rendezvous("127.0.0.1") as meeting:
        visit(meeting)
    socket.create_server(("127.0.0.1", meeting.port)).close()


def test_a_rendezvous_that_is_gone_is_a_closed_link():
    with Rendezvous("127.0.0.1") as gone:
        spec = make_spec("gloo", gone, timeout_s=0.5)
    before = threading.active_count()
    with closing(open_receiver(spec)) as receiver, pytest.raises(LinkClosed, match="no rendezvous"):
        receiver.recv(20)
    assert threading.active_count() == before


def test_a_link_that_looks_for_a_rendezvous_is_closed_at_once():
    with Rendezvous("127.0.0.1") as gone:
        spec = make_spec("gloo", gone, timeout_s=20)
    start = time.monotonic()
    open_sender(spec).close()
    assert seconds(start) < 5
