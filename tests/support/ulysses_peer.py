"""One rank of a window shared by several, in a process of its own."""

from pathlib import Path

import torch

from longreel.jobs.train.finetune_recipe import FlowLoss
from longreel.models.arch import WanArch
from longreel.models.random_weights import fill_random
from longreel.models.wan import WanDiT
from longreel.parallel.ranks import join, leave
from longreel.parallel.ulysses import sequence_group

ARCH = WanArch(num_layers=2, num_heads=4, head_dim=12, ffn_dim=40, text_dim=8, freq_dim=16)


def build_loss(group=None) -> FlowLoss:
    with torch.device("meta"):
        dit = WanDiT(ARCH)
    fill_random(dit, seed=5, device="cpu", dtype=torch.float32)
    return FlowLoss(dit, group)


def batch(num_latents: int, *, levels: int = 1) -> dict[str, torch.Tensor]:
    shape = (2, 16, num_latents, 4, 6)
    generator = torch.Generator().manual_seed(9)

    def draw(*size):
        return torch.randn(size, generator=generator)

    return {
        "clip_BCTHW": draw(*shape),
        "noise_BCTHW": draw(*shape),
        "sigma_B": torch.tensor([0.3, 0.8])[:levels].expand(2).clone(),
        "text_BSD": draw(2, 5, 8),
    }


def train_once(model: FlowLoss, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The loss and the gradient of every parameter."""
    loss, _ = model(**inputs)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {"loss": loss.detach(), **gradients}


def share(rank: int, num: int, folder: Path, num_latents: int, levels: int) -> None:
    torch.set_num_threads(1)
    ranks = join(rank, num, torch.device("cpu"), folder / "meeting")
    model = build_loss(sequence_group(num))
    results = train_once(model, batch(num_latents, levels=levels))
    ranks.average([tensor for name, tensor in results.items() if name != "loss"])
    torch.save(results, folder / f"{rank}.pt")
    leave()
