"""Where links meet: who can reach it, and who is asked about those who do."""

import socket
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from longreel.parallel import link as links
from longreel.parallel.link import Rendezvous


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
