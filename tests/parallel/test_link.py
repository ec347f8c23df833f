"""Every link keeps the same promises; the other end is a process of its own where it can be."""

import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import count
from multiprocessing.context import BaseContext

import link_peer
import pytest
import torch
from forked_ranks import forked_processes
from link_peer import Peer

from longreel.parallel import link as links
from longreel.parallel import nccl_link
from longreel.parallel.gloo_link import GlooReceiver, GlooSender
from longreel.parallel.link import (
    LinkClosed,
    LinkSpec,
    Message,
    Rendezvous,
    choose_kind,
    open_receiver,
    open_sender,
)
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
CASES = ["dtypes", "shapes", "no tensors", "large header", "64 MB", "many small", "growing"]
SIDES = ["sender", "receiver"]
names = count()


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


@pytest.fixture
def peer(kind: str, peers: dict[bool, Peer]) -> Iterator[Peer]:
    peer = peers[kind == "local"]
    yield peer
    link_peer.close_all()
    peer.call(link_peer.close_all)


@contextmanager
def another(context: BaseContext) -> Iterator[Peer]:
    peer = Peer(context)
    try:
        peer.call(link_peer.num_sent, "")
        yield peer
    finally:
        link_peer.close_all()
        peer.stop()


@pytest.fixture
def mortal(monkeypatch) -> Iterator[Peer]:
    with another(forked_processes(monkeypatch)) as peer:
        yield peer


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


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_messages_come_in_order_and_to_the_bit(spec, peer, case):
    join(peer, spec, "sender")
    checked = peer.start(link_peer.check, spec.name, case)
    link_peer.send(spec.name, case)
    assert checked.result(30) == len(link_peer.make(case))


@pytest.mark.parametrize("kind", KINDS)
def test_received_tensors_are_writable_and_the_next_message_does_not_touch_them(spec, peer):
    join(peer, spec, "receiver")
    peer.start(link_peer.send, spec.name, "4 MB")
    got = [link_peer.ends[spec.name + "receiver"].recv().tensors[0] for _ in range(8)]
    for i, tensor in enumerate(got):
        assert torch.equal(tensor.cpu(), torch.full((1 << 20,), float(i)))
        tensor.add_(1)
    assert [int(tensor[-1]) for tensor in got] == [i + 1 for i in range(8)]


@pytest.mark.parametrize("kind", BETWEEN_PROCESSES)
def test_a_sender_may_overwrite_what_it_sent(spec, peer):
    join(peer, spec, "sender")
    for message in link_peer.make("4 MB")[:2]:
        link_peer.ends[spec.name + "sender"].send(message)
        message.tensors[0].fill_(-1)
    assert peer.start(link_peer.check_first, spec.name, "4 MB", 2).result(20) == 2


@pytest.mark.parametrize("kind", ["local"])
def test_in_one_process_the_very_tensor_changes_hands(spec):
    tensor = torch.zeros(3)
    sender, receiver = open_sender(spec), open_receiver(spec)
    sender.send(Message(b"", (tensor,)))
    assert receiver.recv().tensors[0] is tensor
    sender.close()
    receiver.close()


@pytest.mark.parametrize("credits", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sender_is_never_more_than_its_credits_ahead(kind, peer, rendezvous, credits):
    spec = make_spec(kind, rendezvous, credits=credits)
    join(peer, spec, "receiver")
    running = peer.start(link_peer.send_for_ever, spec.name)
    receiver = link_peer.ends[spec.name + "receiver"]
    for received in range(6):
        assert eventually(
            lambda n=received: peer.call(link_peer.num_sent, spec.name) >= n + credits
        )
        time.sleep(0.02)  # whatever else it could send, it would have by now
        assert peer.call(link_peer.num_sent, spec.name) == received + credits
        receiver.recv()
    receiver.close()
    assert "LinkClosed" in running.result(5)


@pytest.mark.parametrize("kind", KINDS)
def test_both_directions_at_once(kind, peer, rendezvous):
    there, back = make_spec(kind, rendezvous), make_spec(kind, rendezvous)
    join(peer, there, "sender")
    join(peer, back, "receiver")
    checked = peer.start(link_peer.check, there.name, "4 MB")
    peer.start(link_peer.send, back.name, "4 MB")
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(link_peer.send, there.name, "4 MB")
        assert link_peer.check(back.name, "4 MB") == 8
        assert checked.result(20) == 8
        sent.result(20)


@pytest.mark.parametrize("first", SIDES)
@pytest.mark.parametrize("kind", KINDS)
def test_either_end_may_be_opened_first_and_a_message_may_be_long_in_coming(
    kind, peer, rendezvous, first
):
    spec = make_spec(kind, rendezvous, timeout_s=0.5)
    if first == "receiver":
        peer.call(link_peer.open_end, spec, "receiver")
        link_peer.open_end(spec, "sender")
    else:
        join(peer, spec, "sender")
    waiting = peer.start(link_peer.recv_error, spec.name, 20)
    time.sleep(0.9)  # idle for more than the timeout, before the first message
    link_peer.ends[spec.name + "sender"].send(Message(b""))
    assert waiting.result(5) == "a message"
    waiting = peer.start(link_peer.recv_error, spec.name, 20)
    time.sleep(0.9)  # and between two
    link_peer.ends[spec.name + "sender"].send(Message(b""))
    assert waiting.result(5) == "a message"


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


def test_an_unknown_kind_names_those_there_are(rendezvous):
    with pytest.raises(ValueError, match=re.escape("'tcp' is unknown")) as error:
        make_spec("tcp", rendezvous)
    assert "local, gloo, shm, nccl" in str(error.value)


@pytest.mark.parametrize(
    ("wanted", "cuda", "one_node", "one_gpu", "nccl", "kind"),
    [
        ("auto", True, True, False, True, "nccl"),
        ("auto", True, False, False, True, "nccl"),
        ("auto", True, True, True, True, "shm"),  # NCCL refuses two ranks on one GPU
        ("auto", True, True, False, False, "shm"),
        ("auto", True, False, False, False, "gloo"),
        ("auto", False, True, False, True, "shm"),
        ("auto", False, False, False, True, "gloo"),
        ("host", True, True, False, True, "shm"),
        ("host", True, False, False, True, "gloo"),
        ("nccl", True, False, False, True, "nccl"),
    ],
)
def test_nccl_joins_different_gpus_and_nothing_else(
    monkeypatch, wanted, cuda, one_node, one_gpu, nccl, kind
):
    monkeypatch.setattr(links, "is_nccl_available", lambda: nccl)
    assert choose_kind(wanted, cuda=cuda, one_node=one_node, one_gpu=one_gpu) == kind


@pytest.mark.parametrize(
    ("cuda", "one_gpu", "words"), [(False, False, "run on CPUs"), (True, True, "share a GPU")]
)
def test_nccl_where_it_cannot_be_says_what_to_set(cuda, one_gpu, words):
    with pytest.raises(
        ValueError, match=rf"parallel\.link=nccl .*{words}; set parallel\.link=auto"
    ):
        choose_kind("nccl", cuda=cuda, one_node=True, one_gpu=one_gpu)


@pytest.mark.parametrize(
    ("built", "devices", "words"),
    [(False, 2, "this torch was built without it"), (True, 0, "torch finds no CUDA device here")],
)
@pytest.mark.parametrize("open_end", [open_sender, open_receiver])
def test_an_nccl_link_without_nccl_or_gpu_says_so_and_opens_nothing(
    rendezvous, monkeypatch, open_end, built, devices, words
):
    monkeypatch.setattr(nccl_link, "GpuPayloads", link_peer.GPU_PAYLOADS)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: built)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    before = threading.active_count()
    with pytest.raises(ValueError, match=rf"{words}; set parallel\.link=host"):
        open_end(make_spec("nccl", rendezvous))
    assert threading.active_count() == before


@pytest.mark.parametrize("side", SIDES)
def test_want_of_a_gpus_memory_is_no_lost_peer(rendezvous, monkeypatch, side):
    """Who renders tries with less then, where a lost peer is replaced and would lack it again."""

    class Full(link_peer.GlooPayloads):
        def ask(self, *args):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        send = ask

    spec, ends = make_spec(WORDS_APART, rendezvous), {}
    for name, open_end in zip(SIDES, (open_sender, open_receiver), strict=True):
        payloads = Full if name == side else link_peer.GlooPayloads
        monkeypatch.setattr(nccl_link, "GpuPayloads", payloads)
        ends[name] = open_end(spec)
    sender, receiver = ends.values()

    def send():
        for _ in range(spec.credits + 1):
            sender.send(Message(b"", (torch.ones(3),)))

    try:
        first, second = (send, receiver.recv) if side == "sender" else (receiver.recv, send)
        if side == "receiver":
            sender.send(Message(b"", (torch.ones(3),)))
        with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
            first()
        with pytest.raises(LinkClosed):
            second()
    finally:
        sender.close()
        receiver.close()


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
