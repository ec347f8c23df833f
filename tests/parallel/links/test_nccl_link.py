"""When links go over NCCL, and what is said where they cannot; without a GPU."""

import threading

import link_peer
import pytest
import torch
from link_ends import SIDES, WORDS_APART, make_spec

from longreel.parallel import link as links
from longreel.parallel import nccl_link
from longreel.parallel.link import LinkClosed, Message, choose_kind, open_receiver, open_sender


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
