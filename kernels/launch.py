"""Where a kernel of Triton starts: without this on the thread's current device, wherever its
tensors are, and no thread of a render has ever set one."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def where_its_tensors_are(
    launch: Callable[Concatenate[Tensor, P], R],
) -> Callable[Concatenate[Tensor, P], R]:
    """On the device of the first argument; of a CPU's tensor nothing changes."""

    @wraps(launch)
    def launched(x: Tensor, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            return launch(x, *args, **kwargs)

    return launched
