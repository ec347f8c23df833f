"""A recipe that learns in milliseconds: a line of small linears, with noise of torch's own."""

import os

import numpy as np
import torch
from torch import nn


class ToyLoss(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        # of 200 x 600 weights, DeepSpeed's stage 3 cuts up the large ones and keeps the small
        self.first, self.last = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.unused = nn.Linear(3, 3).requires_grad_(False)

    def forward(self, x_BD):
        noisy_BD = x_BD + 0.1 * torch.randn_like(x_BD)
        off_BD = self.last(torch.tanh(self.first(noisy_BD))) - x_BD.flip(1)
        loss = off_BD.float().square().mean()
        return loss, {"worst": off_BD.detach().abs().max().item()}


class ToyRecipe:
    recordable = False

    def __init__(self, seed: int = 0, *, width: int = 200, bad_step: int | None = None) -> None:
        torch.manual_seed(seed)
        self.model = ToyLoss(width)
        self._seed, self._width, self._bad_step = seed, width, bad_step

    def batch(self, step, rank, num_ranks):
        rng = np.random.Generator(np.random.PCG64([self._seed, step, rank]))
        x_BD = torch.from_numpy(rng.standard_normal((4, self._width), np.float32))
        return {"x_BD": x_BD * float("nan") if step == self._bad_step else x_BD}

    def sheet(self):
        shown = self.model.first.weight.detach()[:40, :40]
        grey = (shown.clamp(-0.1, 0.1) * 1000 + 127).to(torch.uint8).numpy()
        return np.repeat(grey[:, :, None], 3, axis=2)

    def export(self, folder):
        folder.mkdir(exist_ok=True)
        torch.save(self.model.state_dict(), folder / "toy.pt")


def build_toy(config):
    return ToyRecipe(config.run.seed)


def build_bad(config):
    return ToyRecipe(config.run.seed, bad_step=2)


class FragileRecipe(ToyRecipe):
    def batch(self, step, rank, num_ranks):
        if (step, rank) == (2, 1):
            os._exit(7)
        return super().batch(step, rank, num_ranks)


def build_fragile(config):
    return FragileRecipe(config.run.seed)


class DyingRecipe(ToyRecipe):
    def export(self, folder):
        super().export(folder)
        os._exit(7)


def build_dying(config):
    """Its process is gone in the middle of the export."""
    return DyingRecipe(config.run.seed)


def build_of_arch(name, arch, config):
    """The shapes of test models are not known to a process until it is told."""
    from longreel.jobs.train.recipes import build_recipe
    from longreel.models.arch import ARCHS

    ARCHS[name] = arch
    return build_recipe(config)
