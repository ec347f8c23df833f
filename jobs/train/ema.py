"""A running average of the trained weights: steadier than the last ones, so it is what is shown."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """In float32, over whatever share of the weights this process has."""

    def __init__(self, weights: Sequence[Tensor], decay: float) -> None:
        self.shares = [weight.detach().float().clone() for weight in weights]
        self._decay = decay

    @torch.no_grad()
    def update(self, weights: Sequence[Tensor], steps_done: int) -> None:
        """Early averages forget faster, so that the random start is soon out of them."""
        decay = min(self._decay, (1 + steps_done) / (10 + steps_done))
        if self.shares:
            now = [weight.detach().float() for weight in weights]
            torch._foreach_lerp_(self.shares, now, 1 - decay)

    def load(self, shares: Sequence[Tensor]) -> None:
        for share, saved in zip(self.shares, shares, strict=True):
            share.copy_(saved)


@contextmanager
def wearing(parameters: Sequence[nn.Parameter], weights: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the parameters have these values; afterwards their own, the very same tensors."""
    own = [parameter.data for parameter in parameters]
    try:
        for parameter, weight in zip(parameters, weights, strict=True):
            parameter.data = weight.to(parameter.device, parameter.dtype)
        yield
    finally:
        for parameter, data in zip(parameters, own, strict=True):
            parameter.data = data
