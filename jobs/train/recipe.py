"""What the training loop needs to know of what it trains."""

import warnings
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from ...models.wan import WanDiT

Batch = dict[str, Tensor]


class Recipe(Protocol):
    """A model, its data and its loss. A step's batch depends on seed, step and rank alone."""

    @property
    def model(self) -> nn.Module:
        """All that is trained. It takes a batch by name; gives a loss, and figures beside it."""
        ...

    @property
    def recordable(self) -> bool:
        """Whether a step is the same kernels whenever its batch has the same shapes."""
        ...

    def batch(self, step: int, rank: int, num_ranks: int) -> Batch: ...

    def sheet(self) -> np.ndarray[Any, Any]:
        """What the model does now: H W C bytes."""
        ...

    def export(self, folder: Path) -> None:
        """The model as it is now, in the layout in which it is loaded."""
        ...


def compile_layers(*dits: WanDiT) -> None:
    """By torch, once for all layers of each, which differ in their weights alone."""
    # of rotary positions, whose pairs are complex: written as real numbers they are no faster
    warnings.filterwarnings("ignore", "Torchinductor does not support code generation for complex")
    for dit in dits:
        for layer in dit.blocks.values():
            layer.compile(dynamic=True)  # windows come in every length
