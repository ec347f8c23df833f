"""How a link ends: closed, late, or without the other side, which is killed or stopped."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import link_peer
import pytest
import torch
from link_ends import (
    BETWEEN_PROCESSES,
    KINDS,
    PLAIN,
    SIDES,
    WORDS_APART,
    another,
    eventually,
    join,
    make_spec,
    seconds,
)
from link_peer import Peer

from longreel.parallel.gloo_link import GlooReceiver, GlooSender
from longreel.parallel.link import LinkClosed, Message, Rendezvous


@pytest.mark.parametrize("closer", ["here", "there"])
@pytest.mark.parametrize("blocked", SIDES)
@pytest.mark.parametrize("kind", KINDS)
def test_close_releases_whoever_is_blocked_on_either_side_at_once(spec, peer, blocked, closer):
    other = join(peer, spec, blocked)
    function = {"sender": link_peer.send_for_ever, "receiver": link_peer.recv_error}[blocked]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(function, spec.name)
        time.sleep(0.3)
        assert not waiting.done()
        start_s = time.monotonic()
        if closer == "here":
            link_peer.close(spec.name, blocked)
        else:
            peer.call(link_peer.close, spec.name, other)
        error = waiting.result(5)
        assert seconds(start_s) < 1
    assert error.startswith(f"LinkClosed: link {spec.name}: ")
    assert ("closed here" in error) == (closer == "here")


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_link_stays_closed(spec, peer, side):
    join(peer, spec, side)
    end = link_peer.ends[spec.name + side]
    end.close()
    end.close()
    for _ in range(2):
        with pytest.raises(LinkClosed, match="closed here"):
            end.send(Message(b"")) if side == "sender" else end.recv()
    start = time.monotonic()
    peer.call(link_peer.close, spec.name, SIDES[side == "sender"])
    assert time.monotonic() - start < 10, "it waited for one that was closed"


@pytest.mark.parametrize("kind", ["local", "shm"])  # over TCP, arrival is not the sender's to see
def test_what_arrived_before_the_sender_closed_is_delivered(spec, peer):
    join(peer, spec, "receiver")
    receiver = link_peer.ends[spec.name + "receiver"]
    peer.call(link_peer.send, spec.name, "no tensors")
    peer.call(link_peer.close, spec.name, "sender")
    assert [receiver.recv().header for _ in range(2)] == [b"only words", b""]
    with pytest.raises(LinkClosed, match="the other side"):
        receiver.recv()


@pytest.mark.parametrize("kind", KINDS)
def test_no_message_in_time_closes_the_link_on_both_sides(kind, peer, rendezvous):
    spec = make_spec(kind, rendezvous, timeout_s=20)
    join(peer, spec, "receiver")
    link_peer.ends[spec.name + "receiver"]
    start_s = time.monotonic()
    error = link_peer.recv_error(spec.name, 0.4)
    assert "no message within 0.4 s" in error
    assert 0.4 <= seconds(start_s) < 1.4
    assert "LinkClosed" in peer.start(link_peer.send_for_ever, spec.name).result(5)


@pytest.mark.parametrize("kind", KINDS)
def test_no_credit_in_time_closes_the_link_on_both_sides(kind, peer, rendezvous):
    spec = make_spec(kind, rendezvous, timeout_s=1)
    join(peer, spec, "sender")
    start_s = time.monotonic()
    assert "1 s" in link_peer.send_for_ever(spec.name)
    assert 1 <= seconds(start_s) < 2
    errors = [peer.start(link_peer.recv_error, spec.name).result(5) for _ in range(3)]
    assert "LinkClosed" in errors[-1]  # after at most two messages that were under way


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", BETWEEN_PROCESSES)
def test_a_link_that_nobody_else_opens_says_so(kind, rendezvous, side):
    spec = make_spec(kind, rendezvous, timeout_s=0.5)
    link_peer.open_end(spec, side)
    start_s = time.monotonic()
    wait = {"sender": link_peer.send_for_ever, "receiver": link_peer.recv_error}[side]
    assert "0.5 s" in wait(spec.name)
    assert seconds(start_s) < 1.5
    link_peer.close_all()


@contextmanager
def wait_on_both(
    peer: Peer, kind: str, rendezvous: Rendezvous, timeout_s: float
) -> Iterator[tuple[Future[str], ...]]:
    """A blocked send and a blocked recv on two links to one peer, some messages after they met."""
    sends, recvs = (make_spec(kind, rendezvous, timeout_s) for _ in range(2))
    join(peer, sends, "sender")
    join(peer, recvs, "receiver")
    checked = peer.start(link_peer.check, sends.name, "growing")
    link_peer.send(sends.name, "growing")
    assert checked.result(10) == 20
    peer.start(link_peer.send, recvs.name, "growing")
    assert link_peer.check(recvs.name, "growing") == 20
    with ThreadPoolExecutor(2) as pool:
        waiting = (
            pool.submit(link_peer.send_for_ever, sends.name),
            pool.submit(link_peer.recv_error, recvs.name),
        )
        assert eventually(lambda: link_peer.num_sent(sends.name) == 2)
        time.sleep(0.2)
        assert not any(call.done() for call in waiting)
        assert link_peer.holdings()["shared memory"] == 0  # nothing with a name, whoever dies
        yield waiting


@pytest.mark.parametrize("kind", BETWEEN_PROCESSES)
def test_a_killed_peer_is_noticed_at_once_and_leaves_nothing(kind, mortal, rendezvous):
    before = link_peer.holdings()
    with wait_on_both(mortal, kind, rendezvous, timeout_s=20) as waiting:
        start_s = time.monotonic()
        os.kill(mortal.pid, signal.SIGKILL)
        assert all("the other side" in call.result(5) for call in waiting)
        assert seconds(start_s) < 1
    link_peer.close_all()
    assert eventually(lambda: no_more(link_peer.holdings(), before)), before


@pytest.mark.parametrize("end", ["closed here", "killed there"])
@pytest.mark.parametrize("side", SIDES)
def test_in_the_midst_of_a_payload_the_end_comes_at_once(
    side, end, mortal, rendezvous, monkeypatch
):
    """Of which gloo tells nobody whose bytes are on their way."""
    spec = make_spec("gloo", rendezvous)
    begun, post, finish = threading.Event(), GlooSender._post, GlooReceiver._finish

    def posts(self, words, views):
        works = post(self, words, views)
        begun.set()
        return works

    def finishes(self, envelope):
        begun.set()
        return finish(self, envelope)

    monkeypatch.setattr(GlooSender, "_post", posts)
    monkeypatch.setattr(GlooReceiver, "_finish", finishes)
    join(mortal, spec, side)
    if side == "sender":
        link_peer.ends[spec.name + side].send(Message(b"", (torch.zeros(1 << 26),)))
    else:
        mortal.start(link_peer.send, spec.name, "64 MB")
    assert begun.wait(10)  # not as soon as the ends meet: who is stopped then is waited for
    os.kill(mortal.pid, signal.SIGSTOP)  # a few of its many bytes are there
    start_s = time.monotonic()
    if end == "killed there":
        os.kill(mortal.pid, signal.SIGKILL)
        wait = {"sender": link_peer.send_for_ever, "receiver": link_peer.recv_error}[side]
        assert "the other side" in wait(spec.name)
    link_peer.close(spec.name, side)
    assert seconds(start_s) < 2


@pytest.mark.parametrize("kind", BETWEEN_PROCESSES)
def test_a_stopped_peer_is_noticed_after_the_timeout_and_a_new_link_works(
    kind, mortal, peers, rendezvous
):
    before = link_peer.holdings()
    with wait_on_both(mortal, kind, rendezvous, timeout_s=2) as waiting:
        start_s = time.monotonic()
        os.kill(mortal.pid, signal.SIGSTOP)
        assert all("LinkClosed" in call.result(5) for call in waiting)
        assert 1 < seconds(start_s) < 3
    start_s = time.monotonic()
    link_peer.close_all()
    assert seconds(start_s) < 1  # no thread still waits for the stopped one
    os.kill(mortal.pid, signal.SIGKILL)  # the rendezvous here kept a connection to it
    assert eventually(lambda: no_more(link_peer.holdings(), before)), before

    again = make_spec(kind, rendezvous)
    join(peers[False], again, "receiver")
    peers[False].start(link_peer.send, again.name, "growing")
    assert link_peer.check(again.name, "growing") == 20
    link_peer.close_all()
    peers[False].call(link_peer.close_all)


def no_more(now: dict[str, int], before: dict[str, int]) -> bool:
    return all(now[what] <= before[what] for what in before)


@pytest.mark.parametrize("kind", KINDS)
def test_ten_links_leave_no_thread_no_file_and_no_memory(kind, peer, rendezvous):
    def use() -> None:
        spec = make_spec(kind, rendezvous)
        join(peer, spec, "receiver")
        running = peer.start(link_peer.send_for_ever, spec.name)
        link_peer.recv_error(spec.name)
        link_peer.close(spec.name, "receiver")
        assert "LinkClosed" in running.result(5)
        peer.call(link_peer.close, spec.name, "sender")

    use()
    before = link_peer.holdings(), peer.call(link_peer.holdings)
    for _ in range(10):
        use()
    # gloo's own threads may have been about to end when we counted first, so fewer is fine
    assert eventually(lambda: no_more(link_peer.holdings(), before[0])), before
    assert eventually(lambda: no_more(peer.call(link_peer.holdings), before[1])), before


def test_a_process_ends_though_it_forgot_its_open_links(rendezvous):
    with another(multiprocessing.get_context("spawn")) as peer:  # a fork has not Python's end
        for kind in [*PLAIN, WORDS_APART]:
            for side in SIDES:
                spec = make_spec(kind, rendezvous)
                join(peer, spec, side)
                alone = make_spec(kind, rendezvous, timeout_s=60)
                peer.call(link_peer.open_end, alone, side)
        assert peer.leave() == 0
