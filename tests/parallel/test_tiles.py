"""Tiles made by several workers join to the frames of one, bit for bit."""

import threading
from dataclasses import replace

import pytest
import tiny_vae
import torch

from longreel.models.vae import StreamingDecoder
from longreel.parallel.link import LinkClosed, LinkSpec
from longreel.parallel.messages import Stamp
from longreel.parallel.shards import share_heads
from longreel.parallel.tiles import TileEdges, TileWorker

STAMP = Stamp(render="r", epoch=0)


def make_edges(num, shares, timeout_s=20.0):
    links = tuple(
        LinkSpec(kind="local", name=f"{id(shares)}/{i}", host="", port=0, timeout_s=timeout_s)
        for i in range(1, num)
    )
    first = TileEdges(stamp=STAMP, rank=0, shares=tuple(shares), links=links)
    others = [replace(first, rank=i, links=links[i - 1 : i]) for i in range(1, num)]
    return [first, *others]


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("num", [2, 3])
def test_tiles_of_several_workers_are_the_frames_of_one(kind, num):
    vae, tile = tiny_vae.VAES[kind], 4 * tiny_vae.ARCHS[kind].space_stride
    latents = torch.randn(1, tiny_vae.ARCHS[kind].z_dim, 3, 5, 7)  # two rows of three tiles
    expected = StreamingDecoder(vae, tile).decode(latents)

    def make(mine):
        return StreamingDecoder(vae, tile, mine)

    shares = share_heads([20.0, 20.0, 5.0, 10.0, 10.0, 2.0], num)
    assert all(len(share) == 6 // num for share in shares)
    first, *others = (TileWorker(edges, make) for edges in make_edges(num, shares))

    def send(worker):
        for latent in latents.split(1, dim=2):
            worker.send(latent)

    threads = [threading.Thread(target=send, args=(other,)) for other in others]
    for thread in threads:
        thread.start()
    frames = [first.frames(latent) for latent in latents.split(1, dim=2)]
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert torch.equal(torch.cat(frames, dim=2), expected)
    for worker in (first, *others):
        worker.close()


def test_a_stream_goes_on_from_one_worker_to_two_and_back():
    vae, latents = tiny_vae.VAES["plain"], torch.randn(1, 16, 4, 4, 7)
    latent = latents.split(1, dim=2)
    alone = StreamingDecoder(vae, 32)
    expected = [alone.decode(one) for one in latent]

    begun = StreamingDecoder(vae, 32)
    frames = [begun.decode(latent[0])]
    edges = make_edges(2, [(0, 2, 5), (1, 3, 4)])
    first, other = (TileWorker(e, lambda mine: StreamingDecoder(vae, 32, mine)) for e in edges)
    for worker in (first, other):
        worker.restore(begun.state())
    for one in latent[1:3]:
        other.send(one)
        frames.append(first.frames(one))
    other.send_state()
    begun.restore(first.state())
    frames.append(begun.decode(latent[3]))
    assert all(map(torch.equal, frames, expected))


def test_a_worker_that_leaves_ends_the_first_one_s_wait():
    edges = make_edges(2, [(0,), (1,)])
    vae = tiny_vae.VAES["plain"]
    first, other = (TileWorker(e, lambda mine: StreamingDecoder(vae, 32, mine)) for e in edges)
    other.close()
    with pytest.raises(LinkClosed, match="the other side closed it"):
        first.frames(torch.randn(1, 16, 1, 4, 7))
    first.close()
