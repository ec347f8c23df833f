"""Devices that exchange in step hear within their timeout when one of them is gone."""

import threading
import time
from contextlib import ExitStack, closing
from dataclasses import replace

import pytest
import torch

from longreel.parallel.group import Group, GroupSpec
from longreel.parallel.link import LinkClosed, Rendezvous


@pytest.fixture
def specs(request):
    """Of three devices."""
    with Rendezvous("127.0.0.1") as meeting:
        spec = GroupSpec(
            kind="gloo",
            name=f"r/0/{request.node.name}",
            rank=0,
            num=3,
            host=meeting.host,
            port=meeting.port,
            timeout_s=20.0,
        )
        yield [replace(spec, rank=rank) for rank in range(3)]


def in_threads(specs, work):
    """`work(group)` of each spec at once: what it returns or the error that ends it, and when."""
    results = [None] * len(specs)

    def run(i, group):
        start = time.monotonic()
        try:
            results[i] = work(group), time.monotonic() - start
        except LinkClosed as error:
            results[i] = error, time.monotonic() - start

    with ExitStack() as stack:
        groups = [stack.enter_context(closing(Group(spec))) for spec in specs]
        threads = [threading.Thread(target=run, args=pair) for pair in enumerate(groups)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(40)
            assert not thread.is_alive()
    return results


def piece(sender, receiver, dtype):
    """A different shape for every pair; nothing from 2 to 0."""
    shape = (0,) if (sender, receiver) == (2, 0) else (sender + 1, 2, receiver + 1)
    return torch.full(shape, 10.0 * sender + receiver, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_rank_gets_what_each_other_has_for_it(specs, dtype):
    def work(group):
        rank = group.spec.rank
        pieces = [piece(rank, i, dtype) for i in range(3)]
        shapes = [tuple(piece(i, rank, dtype).shape) for i in range(3)]
        both = group.exchange(pieces, shapes), group.exchange(pieces, shapes)
        assert group.sent_bytes == 2 * sum(p.nbytes for i, p in enumerate(pieces) if i != rank)
        return [exchange.wait() for exchange in both]

    for rank, (twice, _) in enumerate(in_threads(specs, work)):
        for came in twice:
            for sender, tensor in enumerate(came):
                assert torch.equal(tensor, piece(sender, rank, dtype)), (sender, rank)
                assert tensor.dtype == dtype


def swap(group):
    return group.swap([torch.ones(4)] * 3, [(4,)] * 3)


def test_a_device_that_never_comes_is_named_after_the_timeout(specs):
    shorter = [replace(spec, timeout_s=1.0) for spec in specs[:2]]
    for error, seconds in in_threads(shorter, swap):
        assert "device 3 of 3 did not come within 1 s" in str(error)
        assert seconds < 10


def test_a_device_that_leaves_before_it_comes_is_named_at_once(specs):
    def work(group):
        return group.close() if group.spec.rank == 2 else swap(group)

    *others, _ = in_threads(specs, work)
    for error, seconds in others:
        assert "device 3 of 3 has left before it came" in str(error)
        assert seconds < 10


def test_a_device_that_leaves_once_it_has_come_is_waited_for_by_nobody(specs):
    with closing(Group(specs[2])) as group:
        threading.Timer(0.3, group.close).start()
        with pytest.raises(LinkClosed, match="closed here"):
            swap(group)
    for error, seconds in in_threads(specs[:2], swap):
        assert "has left before all had met" in str(error)
        assert seconds < 10


def test_a_device_that_leaves_ends_the_waits_of_the_others(specs):
    def work(group):
        swap(group)
        if group.spec.rank == 2:
            time.sleep(0.3)
            return group.close()
        return swap(group)

    *others, _ = in_threads(specs, work)
    for error, seconds in others:
        assert "a device of the stage is gone or stopped" in str(error)
        assert specs[0].name in str(error)
        assert seconds < 10


def test_a_device_that_stops_ends_the_waits_of_the_others_after_the_timeout(specs):
    done = threading.Event()

    def work(group):
        swap(group)
        if group.spec.rank == 2:
            return done.wait(30)
        try:
            return swap(group)
        finally:
            done.set()

    *others, _ = in_threads([replace(spec, timeout_s=1.0) for spec in specs], work)
    for error, seconds in others:
        assert "a device of the stage is gone or stopped" in str(error)
        assert 0.9 < seconds < 10


def test_closing_ends_the_search_for_a_rendezvous_that_is_gone():
    with Rendezvous("127.0.0.1") as gone:
        where = {"host": gone.host, "port": gone.port}
    spec = GroupSpec(kind="gloo", name="r/0/gone", rank=0, num=3, timeout_s=20.0, **where)
    start = time.monotonic()
    with closing(Group(spec)) as group:
        threading.Timer(0.3, group.close).start()
        with pytest.raises(LinkClosed, match="closed here"):
            swap(group)
    with pytest.raises(LinkClosed, match="no rendezvous at"):
        swap(Group(replace(spec, timeout_s=0.2)))
    assert time.monotonic() - start < 10


def test_closing_ends_a_wait_here(specs):
    with closing(Group(specs[0])) as group:
        threading.Timer(0.3, group.close).start()
        with pytest.raises(LinkClosed, match="closed here"):
            swap(group)


def test_want_of_memory_is_raised_as_that_and_ends_the_group(specs, monkeypatch):
    """As NCCL says it where a GPU has no room for its buffers."""

    def full():
        raise RuntimeError("NCCL error: unhandled cuda error\nCuda failure 2 'out of memory'")

    with closing(Group(specs[0])) as group:
        monkeypatch.setattr(group, "_met", full)
        pieces = [torch.ones(1)] * 3
        with pytest.raises(RuntimeError, match="out of memory") as said:
            group.swap(pieces, [(1,)] * 3)
        assert not isinstance(said.value, LinkClosed)
        with pytest.raises(LinkClosed):
            group.swap(pieces, [(1,)] * 3)


def test_nccl_without_a_gpu_is_refused(specs):
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    with pytest.raises(ValueError, match=r"is to go over NCCL, and .*; set parallel\.link=host"):
        Group(replace(specs[0], kind="nccl"))
