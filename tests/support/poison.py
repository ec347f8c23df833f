"""A stage whose last layer has gone wrong: its weights are not numbers."""

import torch

from longreel.parallel.stage import Stage
from longreel.pipeline.backend import make_stage


def make_poisoned_stage(plan, layers: range, device: str, *shelf: object) -> Stage:
    """With weights of its own, whatever shelf there is."""
    stage = make_stage(plan, layers, device)
    last = plan.arch.dit.num_layers - 1
    if last in layers:
        with torch.no_grad():
            next(stage._expert(0).blocks[str(last)].parameters()).fill_(torch.nan)
    return stage
