"""Muon for weights of any shape: a convolution's weights are the rows of a matrix, a row an output.

Row by row in memory, whatever the layout: the matrix is a view, so that moving it moves the weight.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_FEWEST = 8  # rows and columns: less is no matrix to speak of


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon moves it: inner matrices and convolutions, not what embeds or biases."""
    if parameter.ndim == 2:
        return "blocks." in name
    if parameter.ndim < 4 or "patch_embedding" in name:
        return False
    return min(parameter.shape[0], parameter[0].numel()) >= _FEWEST


class Muon:
    """torch's, on matrices that are views of the weights."""

    def __init__(self, weights: Sequence[nn.Parameter], weight_decay: float) -> None:
        self._weights = weights
        self._matrices = [matrix_of(weight.data) for weight in weights]
        for weight, matrix in zip(weights, self._matrices, strict=True):
            assert weight.data_ptr() == matrix.data_ptr(), "a copy would be moved in its place"
        self._inner: Any = torch.optim.Muon(
            self._matrices, 0.0, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self._inner.param_groups
        return groups

    def zero_grad(self) -> None:
        for weight in self._weights:
            weight.grad = None

    def step(self) -> None:
        for weight, matrix in zip(self._weights, self._matrices, strict=True):
            grad = weight.grad
            assert grad is None or grad.stride() == weight.stride(), "columns would be mixed up"
            matrix.grad = None if grad is None else matrix_of(grad)
        self._inner.step()
        self._inner.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self._inner.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._inner.load_state_dict(state)


def matrix_of(weight: Tensor) -> Tensor:
    """Outputs x inputs. Channels are the innermost columns, as in channels-last memory; a
    contiguous convolution has them outermost, and is not moved about for it."""
    if weight.ndim == 2 or weight.is_contiguous():
        return weight.flatten(1)
    return weight.movedim(1, -1).flatten(1)
