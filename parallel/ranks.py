"""The processes that train one model together: who they are, and what they agree on."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore

_TIMEOUT = timedelta(minutes=30)  # rank 0 draws sheets and writes the model while the others wait


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among `num`; alone, nothing is sent and no group is needed."""

    rank: int
    num: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Of each value over all ranks, the same bits on every rank."""
        if self.num == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def average(self, tensors: Sequence[Tensor]) -> None:
        """In place, all in one message."""
        if self.num == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.num
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def wait(self) -> None:
        """Until every rank is here."""
        if self.num > 1:
            dist.barrier()


def join(rank: int, num: int, device: torch.device, meeting: Path) -> Ranks:
    """`meeting` is a file, not yet there, that all ranks of this machine can write."""
    store = FileStore(str(meeting), num)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, store=store, rank=rank, world_size=num, timeout=_TIMEOUT)
    return Ranks(rank=rank, num=num, device=device)


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
