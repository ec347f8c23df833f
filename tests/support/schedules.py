"""diffusers' schedulers, set up as the Wan checkpoints publish them, and a model to drive them."""

import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

MULTISTEP = ("unipc2", "unipc3", "dpm++2m", "dpm++3m")
ORDERS = {"unipc2": 2, "unipc3": 3, "dpm++2m": 2, "dpm++3m": 3}


def reference(name: str, steps: int, shift: float) -> Any:
    if name == "euler":
        scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=shift)
    else:
        made = UniPCMultistepScheduler if name.startswith("unipc") else DPMSolverMultistepScheduler
        scheduler = made(
            solver_order=ORDERS[name],
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=shift,
        )
    with warnings.catch_warnings():
        # DPMSolverMultistepScheduler turns a tensor into an array the way NumPy 1 liked
        warnings.simplefilter("ignore", DeprecationWarning)
        scheduler.set_timesteps(steps)
    return scheduler


@contextmanager
def in_double(scheduler: Any) -> Iterator[None]:
    """Let the scheduler's own formulas run in float64: its table widened, its casts turned off."""
    scheduler.sigmas = scheduler.sigmas.double()
    wide = types.SimpleNamespace(**{**vars(torch), "float32": torch.float64})
    with patch(f"{type(scheduler).__module__}.torch", wide):
        yield


def velocity(sample: Tensor, timestep: float) -> Tensor:
    """A model that is neither linear nor pointwise, so that errors do not cancel."""
    return torch.sin(3 * sample) + sample * timestep / 1000 - torch.tanh(sample.flip(-1))
