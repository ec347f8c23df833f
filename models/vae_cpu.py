"""What a VAE asks for that torch does slowly on a CPU in float32, done in a faster way.

Convolutions: torch gives oneDNN one of a single sample only if its channels, frames and rows come
to more than 20,480, and unfolds any other in memory first, which takes up to five times as long.
Norms over channels: torch steps through memory by whole pictures, at a tenth of the speed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.overrides import TorchFunctionMode

_HAS_ONE_DNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
_LEAST = 1e-12  # that a norm counts as
_OVER_CHANNELS = {"p": 2.0, "dim": 1, "eps": _LEAST, "out": None}


class FastOnCpu(TorchFunctionMode):
    """Inside its `with`, in this thread. Sums come in another order: last bits are others."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv3d and not kwargs and _convolves_faster(*args[:2]):
            return _convolve(*args)
        if func is normalize and kwargs == _OVER_CHANNELS and _is_ours(args[0]):
            return _normalize(args[0])
        return func(*args, **kwargs)


def _is_ours(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32


def _convolves_faster(x_BCTHW: Tensor, weight: Tensor) -> bool:
    """Of one pixel, torch's way is no slower."""
    return _is_ours(x_BCTHW) and weight.shape[-1] > 1 and _HAS_ONE_DNN


def _convolve(
    x_BCTHW: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Arguments as nn.Conv3d gives them."""
    one_dnn: Callable[..., Tensor] = torch.ops.aten.mkldnn_convolution.default
    return one_dnn(x_BCTHW, weight, bias, padding, stride, dilation, groups)


def _normalize(x_BCTHW: Tensor) -> Tensor:
    square_B1THW = x_BCTHW.square().sum(1, keepdim=True)
    return x_BCTHW / square_B1THW.sqrt_().clamp_min_(_LEAST)
