"""Parts of actors that go wrong."""

import time
from pathlib import Path

import torch

from longreel.parallel.stage import Stage
from longreel.pipeline.backend import make_stage, make_windows
from longreel.pipeline.decoding import make_codec


def make_poisoned_stage(plan, layers: range, device: str, *shelf: object) -> Stage:
    """Whose last layer's weights are not numbers; of its own, whatever shelf there is."""
    stage = make_stage(plan, layers, device)
    last = plan.arch.dit.num_layers - 1
    if last in layers:
        with torch.no_grad():
            next(stage._expert(0).blocks[str(last)].parameters()).fill_(torch.nan)
    return stage


def make_stage_from(pipe, plan, layers: range, device: str, *shelf: object) -> Stage:
    """The first of them reads its weights as from a disk that does not answer, until the pipe has
    a writer."""
    if 0 in layers:
        Path(pipe).read_bytes()
    return make_stage(plan, layers, device, *shelf)


def make_codec_from(pipe, *args):
    """Likewise."""
    Path(pipe).read_bytes()
    return make_codec(*args)


def make_windows_late(path, sampling, device):
    """The first ones, of which the file is a sign, never come."""
    if not Path(path).exists():
        Path(path).touch()
        time.sleep(600)
    return make_windows(sampling, device)
