"""How long a task takes this machine beside the model: at both ends of a chain, and over a link.

B batch, C channels, T latents, H height, W width.
"""

import time
import uuid
from itertools import islice
from statistics import mean

import torch
from torch import Tensor

from ..configs.schema import SamplingConfig
from ..models.arch import ModelArch
from ..parallel.link import LinkSpec, Message, open_receiver, open_sender
from ..parallel.tasks import Task
from .condition import Condition
from .guidance import GuidancePlan
from .levels import make_levels
from .schedule import BlockSchedule
from .solver import make_solver
from .stepper import Stepper
from .windows import Sampling, Windows

_TASKS = 40
_MESSAGES = 4


def end_seconds(
    arch: ModelArch, schedule: BlockSchedule, rows: int, columns: int, device: torch.device
) -> tuple[float, float]:
    """Of a task's window put together at the first stage, and of its step at the last one.

    The schedule's first tasks, by the default solver, with a model that takes no time.
    """
    sampling = _sampling(arch, schedule, rows, columns, device)
    windows = Windows(sampling)
    stepper = Stepper(sampling, make_solver(SamplingConfig().solver, sampling.levels))
    times = []
    for task in islice(schedule.tasks(), _TASKS):
        start = now(device)
        windows.inputs(task)
        entered = now(device)
        if not task.commit:
            velocity_BCTHW = _velocity(task, sampling)
            begun = now(device)
            moved = stepper.step(task, [velocity_BCTHW])
            times.append((entered - start, now(device) - begun))
            for version in moved:
                windows.put(version)
    measured = times[1:] or times  # the first one warms up
    return mean(enter for enter, _ in measured), mean(step for _, step in measured)


def copy_seconds(tokens_BLD: Tensor) -> float:
    """Of a byte into a link or out of it, which a stage on a CPU does itself."""
    if tokens_BLD.is_cuda:
        return 0.0  # a GPU sends and receives beside its computing
    name = f"calibrate/{uuid.uuid4().hex}"
    spec = LinkSpec(kind="shm", name=name, host="localhost", port=0, timeout_s=60.0)
    receiver, sender = open_receiver(spec), open_sender(spec)
    times = []
    try:
        for _ in range(1 + _MESSAGES):
            start = time.perf_counter()
            sender.send(Message(b"", (tokens_BLD,)))
            receiver.recv()
            times.append(time.perf_counter() - start)
    finally:
        sender.close()
        receiver.close()
    return mean(times[1:]) / (2 * tokens_BLD.nbytes)


def _sampling(
    arch: ModelArch, schedule: BlockSchedule, rows: int, columns: int, device: torch.device
) -> Sampling:
    config = SamplingConfig()
    levels = make_levels(config.solver, schedule.steps, config.shift)
    text_BSD = torch.zeros(1, arch.text_len, arch.dit.text_dim, device=device)
    return Sampling(
        seed=0,
        frame_shape=(arch.dit.out_channels, rows, columns),
        schedule=schedule,
        levels=levels,
        guidance=GuidancePlan((None,) * levels.steps, "none"),
        boundary=0.0,
        pool=None,
        texts={0: text_BSD},
        negative_BSD=None,
        condition=Condition(),
        causal_latents=0,
        fps=16,
        prefix_level=0.0,
        device=device,
    )


def _velocity(task: Task, sampling: Sampling) -> Tensor:
    channels, height, width = sampling.frame_shape
    return torch.randn(1, channels, task.num_latents, height, width, device=sampling.device)


def now(device: torch.device) -> float:
    """Once everything it was given is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
