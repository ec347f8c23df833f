"""Tensors in the form that is cheapest to send over Ray: bytes of the host, which it shares."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Packed:
    dtype: str  # numpy has no bfloat16
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]

    def tensor(self) -> Tensor:
        """A copy: what Ray hands out is shared memory that must not be written to."""
        flat = torch.from_numpy(self.data.copy()).view(getattr(torch, self.dtype))
        return flat.reshape(self.shape)


def pack(tensor: Tensor) -> Packed:
    host = tensor.detach().cpu().contiguous()
    data = host.reshape(-1).view(torch.uint8).numpy()
    return Packed(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), data)
