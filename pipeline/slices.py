"""Which layers each stage has: even in what they take, as measured here or else as estimated.

A cut changes how fast a video is made, and no bit of it.
"""

from typing import TYPE_CHECKING

from .cost import Seconds, Speed, estimate_seconds, model_cost
from .kinds import commonest_task
from .measured import find, make_case

if TYPE_CHECKING:
    import torch

    from .plan import Plan


def slices(plan: "Plan", measured: Seconds | None = None) -> list[range]:
    """Embedding and head included; by the products of each part where nothing was measured."""
    anywhere = Speed(flops=1.0, bytes_per_s=1.0, task_s=0.0)  # only the ratio of the parts counts
    cost = model_cost(
        plan.arch,
        height=plan.config.video.height,
        width=plan.config.video.width,
        dtype=plan.config.model.dtype,
        passes=1,
        seconds=measured or estimate_seconds(plan.arch.dit, plan.arch.text_len, anywhere),
    )
    return cost.split(plan.config.parallel.num_stages, commonest_task(plan.schedule))


def find_measured(plan: "Plan", device: "torch.device") -> Seconds | None:
    """Of the plan's windows on a device of this machine; none: nothing was measured."""
    folder = plan.config.parallel.calibration
    return find(folder, make_case(plan.config, plan.schedule, device)) if folder else None


def describe_slices(plan: "Plan", measured: Seconds | None) -> str:
    counts = [len(layers) for layers in slices(plan, measured)]
    if len(counts) == 1:
        return f"{counts[0]}, on one stage"
    split = f"{', '.join(map(str, counts))}, split"
    if measured is not None:
        return f"{split} as measured on this device"
    if plan.config.parallel.address != "local":
        return f"{split} as estimated, or as measured on the cluster's devices"
    return f"{split} as estimated (`longreel simulate --calibrate` measures)"
