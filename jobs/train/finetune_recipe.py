"""How a Wan-shaped checkpoint learns from clips: flow matching, on all weights or low-rank sums.

B batch, C channels, T latents or frames, H height, W width, S text tokens, D channels of a token.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor, nn

from ...configs.train_schema import TrainConfig
from ...models.arch import ARCHS
from ...models.checkpoint import locate
from ...models.vae import StreamingDecoder, to_uint8
from ...models.vae_load import load_vae
from ...models.wan import WanDiT
from ...models.wan_load import load_dit
from ...parallel.ulysses import SequenceGroup
from .clips import find_clips, read_clip
from .export import write_transformer
from .lora import adapter_state, add_lora, merged_state
from .patterns import shifted
from .recipe import Batch

_TIMESTEPS = 1000  # the model's name for a level of 1
_SHOWN_LEVEL = 0.6
_SHOWN_FRAMES = 6


class FlowLoss(nn.Module):
    """The squared error of the velocity, noise - clip, at the level of each clip."""

    def __init__(self, dit: WanDiT, group: SequenceGroup | None = None) -> None:
        super().__init__()
        self.dit = dit
        self._groups = () if group is None else (group,)

    def forward(
        self, clip_BCTHW: Tensor, noise_BCTHW: Tensor, sigma_B: Tensor, text_BSD: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        made_BCTHW = self.velocity(_mix(clip_BCTHW, noise_BCTHW, sigma_B), sigma_B, text_BSD)
        loss = (made_BCTHW.float() - (noise_BCTHW - clip_BCTHW)).square().mean()
        return loss, {}

    def velocity(
        self, noisy_BCTHW: Tensor, sigma_B: Tensor, text_BSD: Tensor, *, alone: bool = False
    ) -> Tensor:
        """`alone`: this rank does all of it, whoever shares the training's windows."""
        state = self.dit.embed(noisy_BCTHW, sigma_B[:, None] * _TIMESTEPS, text_BSD)
        if self._groups and not alone:
            state = self._groups[0].run_layers(self.dit, state)
        else:
            state = self.dit.run_layers(state, range(self.dit.num_layers))
        return self.dit.head(state)

    def __deepcopy__(self, memo: dict[int, Any]) -> "FlowLoss":
        """Without the group: a copy is one rank's own."""
        import copy

        return FlowLoss(copy.deepcopy(self.dit, memo))


class FinetuneRecipe:
    """Encoded clips in any order, each at a level drawn for it."""

    recordable = False  # its levels are told apart on the host

    def __init__(self, config: TrainConfig, group: SequenceGroup | None = None) -> None:
        self._finetune, self._seed = config.finetune, config.run.seed
        arch = ARCHS[config.finetune.arch]
        path = locate(config.finetune.checkpoint, "transformer", "finetune.checkpoint")
        cpu = torch.device("cpu")
        self.dit = load_dit(path, arch.dit, device=cpu, dtype=torch.float32).train()
        torch.manual_seed(config.run.seed)
        if config.finetune.method == "lora":
            add_lora(self.dit, config.finetune.rank, config.finetune.alpha)
        else:
            self.dit.requires_grad_(True)
        self.model = FlowLoss(self.dit, group)
        self._clips, self._no_text_SD = find_clips(config.finetune, config.data)

    def batch(self, step: int, rank: int, num_ranks: int) -> Batch:
        rng = np.random.Generator(np.random.PCG64([self._seed, step, rank]))
        numbers = rng.integers(len(self._clips), size=self._num)
        latents, captions = zip(*map(self._read, numbers), strict=True)
        clip_BCTHW = torch.stack(latents)
        dropped = rng.random(self._num) < self._finetune.drop_prompt
        texts = [
            self._no_text_SD if drop else text_SD
            for drop, text_SD in zip(dropped, captions, strict=True)
        ]
        even, shift = rng.random(self._num), self._finetune.shift
        sigma_B = torch.from_numpy(shifted(even, shift)).float()
        noise = rng.standard_normal(clip_BCTHW.shape, np.float32)
        return {
            "clip_BCTHW": clip_BCTHW,
            "noise_BCTHW": torch.from_numpy(noise),
            "sigma_B": sigma_B,
            "text_BSD": torch.stack(texts),
        }

    @torch.no_grad()
    def sheet(self) -> np.ndarray[Any, Any]:
        """The first clip, and what the model makes of it in one step from much noise."""
        device = next(self.dit.parameters()).device
        clip_BCTHW, text_BSD = (tensor[None].to(device) for tensor in self._read(0))
        generator = torch.Generator().manual_seed(self._seed)
        noise_BCTHW = torch.randn(clip_BCTHW.shape, generator=generator).to(device)
        sigma_B = torch.tensor([_SHOWN_LEVEL])
        noisy_BCTHW = _mix(clip_BCTHW, noise_BCTHW, sigma_B)
        velocity = self.model.velocity(noisy_BCTHW, sigma_B, text_BSD, alone=True)
        path = locate(self._finetune.checkpoint, "vae", "finetune.checkpoint")
        vae_arch = ARCHS[self._finetune.arch].vae
        vae = load_vae(path, vae_arch, device=device, dtype=torch.float32)
        rows = []
        for latents_BCTHW in (clip_BCTHW, noisy_BCTHW - _SHOWN_LEVEL * velocity.float()):
            frames_THWC = to_uint8(StreamingDecoder(vae).decode(latents_BCTHW)).cpu().numpy()
            picked = np.linspace(0, len(frames_THWC) - 1, _SHOWN_FRAMES).round().astype(int)
            rows.append(rearrange(frames_THWC[picked], "T H W C -> H (T W) C"))
        return np.concatenate(rows)

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """An adapter, or a whole transformer in the layout of diffusers."""
        folder.mkdir(exist_ok=True)
        if self._finetune.method == "lora" and self._finetune.export == "adapter":
            adapter = {name: part.cpu() for name, part in adapter_state(self.dit).items()}
            save_file(adapter, folder / "pytorch_lora_weights.safetensors", {"format": "pt"})
            return
        write_transformer(merged_state(self.dit), self.dit.arch, folder / "transformer")

    def _read(self, number: int) -> tuple[Tensor, Tensor]:
        return read_clip(self._clips[number], self._finetune)

    @property
    def _num(self) -> int:
        return self._finetune.clips


def _mix(clip_BCTHW: Tensor, noise_BCTHW: Tensor, sigma_B: Tensor) -> Tensor:
    sigma_B1111 = sigma_B.to(clip_BCTHW.device)[:, None, None, None, None]
    return (1 - sigma_B1111) * clip_BCTHW + sigma_B1111 * noise_BCTHW
