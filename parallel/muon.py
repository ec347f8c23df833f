"""Muon for weights of any shape: a convolution's weights are the rows of a matrix, a row an output.

N matrices of one shape, moved together: R rows, C columns.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_FEWEST = 8  # rows and columns: less is no matrix to speak of
_MOMENTUM = 0.95
_ROUNDS = 5
_A, _B, _C = 3.4445, -4.7750, 2.0315  # of the polynomial that pulls singular values towards 1
_TINY = 1e-7


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon moves it: inner matrices and convolutions, not what embeds or biases."""
    if parameter.ndim == 2:
        return "blocks." in name
    if parameter.ndim < 4 or "patch_embedding" in name:
        return False
    return min(parameter.shape[0], parameter[0].numel()) >= _FEWEST


class Muon:
    """torch's rule with AdamW's size of steps, on all matrices of one shape at a time.

    A small model has many small matrices: one after the other they take most of a step on a GPU.
    """

    def __init__(self, weights: Sequence[nn.Parameter], weight_decay: float) -> None:
        shapes: dict[torch.Size, list[nn.Parameter]] = {}
        for weight in weights:
            shapes.setdefault(matrix_of(weight.data).shape, []).append(weight)
        self._together = list(shapes.values())
        self._momenta_NRC = [
            torch.zeros(len(alike), *shape, device=alike[0].device)
            for shape, alike in shapes.items()
        ]
        # the rate is a number, or a tensor on the weights' device
        self.param_groups: list[dict[str, Any]] = [{"lr": 0.0, "weight_decay": weight_decay}]

    def zero_grad(self) -> None:
        for weight in (weight for alike in self._together for weight in alike):
            weight.grad = None

    @torch.no_grad()
    def step(self) -> None:
        (group,) = self.param_groups
        for alike, momentum_NRC in zip(self._together, self._momenta_NRC, strict=True):
            grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in alike]
            grad_NRC = torch.stack([matrix_of(grad) for grad in grads]).float()
            momentum_NRC.lerp_(grad_NRC, 1 - _MOMENTUM)
            moves_NRC = orthogonal(grad_NRC.lerp(momentum_NRC, _MOMENTUM)).float()
            rate = group["lr"] * 0.2 * max(momentum_NRC.shape[1:]) ** 0.5
            matrices = [matrix_of(weight.data) for weight in alike]
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            if isinstance(rate, Tensor):
                moves_NRC, rate = rate * moves_NRC, 1.0
            torch._foreach_add_(matrices, list(moves_NRC.unbind()), alpha=-rate)

    def state_dict(self) -> dict[str, Any]:
        return {"momenta_NRC": self._momenta_NRC}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for momentum_NRC, saved_NRC in zip(self._momenta_NRC, state["momenta_NRC"], strict=True):
            momentum_NRC.copy_(saved_NRC)


def orthogonal(moves_NRC: Tensor) -> Tensor:
    """Each matrix with its singular values brought near 1, in bfloat16 (Newton and Schulz)."""
    upright = moves_NRC.shape[1] > moves_NRC.shape[2]
    x_NRC = moves_NRC.bfloat16()
    if upright:
        x_NRC = x_NRC.mT
    x_NRC = x_NRC / x_NRC.norm(dim=(1, 2), keepdim=True).clamp(min=_TINY)
    for _ in range(_ROUNDS):
        gram_NRR = x_NRC @ x_NRC.mT
        gram_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=_B, alpha=_C)
        x_NRC = torch.baddbmm(x_NRC, gram_NRR, x_NRC, beta=_A)
    return x_NRC.mT if upright else x_NRC


def matrix_of(weight: Tensor) -> Tensor:
    """Outputs x inputs: a view. Channels are the innermost columns, as in channels-last memory; a
    contiguous convolution has them outermost, and is not moved about for it."""
    if weight.ndim == 2 or weight.is_contiguous():
        return weight.view(len(weight), -1)
    return weight.movedim(1, -1).view(len(weight), -1)
