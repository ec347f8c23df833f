"""Devices of a stage over NCCL: one alone, and two where there are two."""

import threading
from contextlib import closing

import pytest
import torch

from longreel.parallel.group import Group, GroupSpec
from longreel.parallel.link import Rendezvous
from longreel.parallel.nccl_link import missing_for_nccl

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(missing_for_nccl()), reason=f"NCCL: {missing_for_nccl()}"),
]
TWO = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="needs two GPUs: NCCL refuses two ranks on one"
)


def _exchange(spec, results):
    """Twice in a row, as the layers of a model do; what came."""
    device = torch.device("cuda", spec.rank)
    torch.cuda.set_device(device)
    with closing(Group(spec)) as group:
        pieces = [
            torch.full((i + 1, 2), 10.0 * spec.rank + i, device=device) for i in range(spec.num)
        ]
        shapes = [(spec.rank + 1, 2)] * spec.num
        both = group.exchange(pieces, shapes), group.exchange(pieces, shapes)
        came = [exchange.wait() for exchange in both]
        torch.cuda.synchronize(device)
        group.settle()
        results[spec.rank] = [[piece.cpu() for piece in pieces] for pieces in came]


@pytest.mark.parametrize("num", [1, pytest.param(2, marks=TWO)])
def test_every_rank_gets_what_each_has_for_it(num):
    results = {}
    with Rendezvous("127.0.0.1") as meeting:
        threads = [
            threading.Thread(
                target=_exchange,
                args=(
                    GroupSpec(
                        kind="nccl",
                        name="r/0/all",
                        rank=rank,
                        num=num,
                        host=meeting.host,
                        port=meeting.port,
                        timeout_s=30,
                    ),
                    results,
                ),
                daemon=True,
            )
            for rank in range(num)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert sorted(results) == list(range(num))
    for rank, twice in results.items():
        for came in twice:
            for sender, piece in enumerate(came):
                assert torch.equal(piece, torch.full((rank + 1, 2), 10.0 * sender + rank))
