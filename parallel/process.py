"""What a process that Ray has started for us needs before it works."""

import os
import sys
from pathlib import Path

import torch

from .link import NCCL_SETTINGS

_ROOT = Path(__file__).resolve().parents[1]


def settle() -> None:
    """For every thread that computes, and cheap to repeat.

    Ray puts the driver's folders first on the path; were ours among them, `import kernels` would
    find our folder where diffusers looks for the package of that name. And one thread to a process:
    many share a machine, and sums that are split over threads round differently.
    """
    if (_ROOT / "longreel").is_dir():
        sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _ROOT]
    torch.set_num_threads(1)
    for name, value in NCCL_SETTINGS.items():
        os.putenv(name, value)  # torch reads it from C++, when a link makes its group
