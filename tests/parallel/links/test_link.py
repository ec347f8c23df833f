"""Every link keeps the same promises; the other end is a process of its own where it can be."""

import re
import time
from concurrent.futures import ThreadPoolExecutor

import link_peer
import pytest
import torch
from link_ends import BETWEEN_PROCESSES, KINDS, SIDES, eventually, join, make_spec

from longreel.parallel.link import Message, open_receiver, open_sender

CASES = ["dtypes", "shapes", "no tensors", "large header", "64 MB", "many small", "growing"]


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


def test_an_unknown_kind_names_those_there_are(rendezvous):
    with pytest.raises(ValueError, match=re.escape("'tcp' is unknown")) as error:
        make_spec("tcp", rendezvous)
    assert "local, gloo, shm, nccl" in str(error.value)
