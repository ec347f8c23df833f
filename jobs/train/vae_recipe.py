"""How the small VAE is learnt: clips of the world in, the same clips out.

B batch, C channels, T frames or latents, H height, W width. Frames lie in [-1, 1].
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanResidualBlock
from einops import rearrange
from torch import Tensor, nn

from ...configs.train_small import VaeTraining
from ...models.arch import VaeArch
from ...models.vae_build import build_vae
from ...models.vae_load import load_vae
from ..world.draw import draw_with_owners
from ..world.scene import Split, random_scene
from ..world.words import SIZE
from .recipe import Batch
from .vae_whole import decode_whole, encode_whole

_ONE_LATENT_MORE = 5  # frames: one, and four
_SHEET_CLIPS = 4
_SHEET_FRAMES = (0, 1, 8, 16, 32, 64, 128)
_STATISTICS_CLIPS = 64
_LONGEST_START = 4000  # clips begin anywhere in a scene


class VaeLoss(nn.Module):
    """L1, weighed where things are, and L1 of the differences between neighbouring pixels.

    Plain L1 blurs small things: they cover a fiftieth of a frame. Latents are the mode with a
    little noise, which the decoder learns to bear, and stay small; sampling from a posterior of its
    own width drowned the picture for the first hundreds of steps.
    """

    def __init__(self, vae: nn.Module, mix: VaeTraining) -> None:
        super().__init__()
        self.vae: Any = vae
        self._encode, self._decode = encode_whole, decode_whole
        if mix.compiled:  # a clip's shape stays the same for a whole phase
            self._encode = torch.compile(encode_whole, dynamic=False)
            self._decode = torch.compile(decode_whole, dynamic=False)
        self._mix = mix

    def forward(self, frames_BCTHW: Tensor, near_BTHW: Tensor) -> tuple[Tensor, dict[str, float]]:
        mix = self._mix
        frames_BCTHW = frames_BCTHW.contiguous(memory_format=torch.channels_last_3d)
        with torch.set_grad_enabled(mix.encoder):
            z_BCTHW = self._latents(frames_BCTHW)
        noisy_BCTHW = z_BCTHW + mix.noise * torch.randn_like(z_BCTHW)
        made_BCTHW = self._decode(self.vae, noisy_BCTHW).float()
        weight_B1THW = 1 + mix.things * near_BTHW[:, None]
        weight_B1THW = weight_B1THW / weight_B1THW.mean()
        off_BCTHW = made_BCTHW - frames_BCTHW
        l1 = (weight_B1THW * off_BCTHW.abs()).mean()
        edge = sum((weight_B1THW * off_BCTHW).diff(dim=dim).abs().mean() for dim in (3, 4))
        size = z_BCTHW.square().mean()
        loss = l1 + mix.edges * edge + mix.size * size
        figures = {"l1": l1, "size": size, "mse": off_BCTHW.detach().square().mean()}
        if mix.encoder and mix.alike:
            figures["alike"] = self._still(frames_BCTHW)
            loss = loss + mix.alike * figures["alike"]
        return loss, {name: value.item() for name, value in figures.items()}

    def _latents(self, frames_BCTHW: Tensor) -> Tensor:
        return self._encode(self.vae, frames_BCTHW).float()

    def _still(self, frames_BCTHW: Tensor) -> Tensor:
        """How far a latent of one frame is from one of four, when nothing moves.

        A DiT cannot tell a video's first latent from another in noise, so the two must be alike.
        """
        still_BCTHW = frames_BCTHW[:, :, :1].expand(-1, -1, _ONE_LATENT_MORE, -1, -1)
        first, second = self._latents(still_BCTHW).unbind(dim=2)
        return (first - second).square().mean()


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What batches hold until a step: many short clips first, then few long ones."""

    until: int
    clips: int
    frames: int
    crop: int
    long_frames: int = 0  # half of the batches are one clip of so many; 0: none


class VaeRecipe:
    """Crops of clips, some longer than the VAE's reach in time, so that late frames are learnt."""

    recordable = False  # its figures are read in every step

    def __init__(
        self,
        arch: VaeArch,
        *,
        seed: int,
        phases: Sequence[Phase],
        mix: VaeTraining,
        start: Path | None = None,
    ) -> None:
        torch.manual_seed(seed)
        self.vae: Any = _first_vae(arch) if start is None else _vae_of(start, arch)
        self.vae.train().requires_grad_(True)
        channels_last(self.vae)
        if not mix.encoder:  # latents stay what they are, for a DiT that learns them meanwhile
            self.vae.encoder.requires_grad_(False)
            self.vae.quant_conv.requires_grad_(False)
        self.model = VaeLoss(self.vae, mix)
        self._seed, self._phases = seed, phases

    def batch(self, step: int, rank: int, num_ranks: int) -> Batch:
        rng = np.random.Generator(np.random.PCG64([self._seed, step, rank]))
        phase = next((p for p in self._phases if step < p.until), self._phases[-1])
        long = phase.long_frames and rng.random() < 0.5
        count, frames = (1, phase.long_frames) if long else (phase.clips, phase.frames)
        pairs = [self._clip(rng, frames, phase.crop) for _ in range(count)]
        clips, near = zip(*pairs, strict=True)
        return {"frames_BCTHW": torch.stack(clips), "near_BTHW": torch.stack(near)}

    @torch.no_grad()
    def sheet(self) -> np.ndarray[Any, Any]:
        """Held-out clips: a row of truth over a row of what comes back."""
        rows = []
        for number in range(_SHEET_CLIPS):
            frames_TCHW = whole_clip("held-out", number, 0, max(_SHEET_FRAMES) + 1)
            made_TCHW = self._reconstruct(frames_TCHW)
            for clip_TCHW in (frames_TCHW, made_TCHW):
                picked = clip_TCHW[list(_SHEET_FRAMES)]
                rows.append(rearrange(picked, "T C H W -> H (T W) C"))
        sheet = torch.cat(rows) * 127.5 + 127.5
        return sheet.clamp(0, 255).round().to(torch.uint8).numpy()

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """As diffusers writes it, with the statistics of its latents over clips of the world."""
        latents = [
            self._encode(whole_clip("train", 10_000_000 + n, 0, 33))
            for n in range(_STATISTICS_CLIPS)
        ]
        z_NCTHW = torch.stack(latents).float()
        self.vae.register_to_config(
            latents_mean=[round(v, 4) for v in z_NCTHW.mean(dim=(0, 2, 3, 4)).tolist()],
            latents_std=[round(v, 4) for v in z_NCTHW.std(dim=(0, 2, 3, 4)).tolist()],
        )
        whole = copy.deepcopy(self.vae)  # which a file holds row by row
        for parameter in whole.parameters():
            parameter.data = parameter.data.contiguous()
        whole.save_pretrained(folder)

    def _encode(self, frames_TCHW: Tensor) -> Tensor:
        z_BCTHW: Tensor = self.vae.encode(
            _clip_batch(frames_TCHW).to(self.vae.device)
        ).latent_dist.mode()
        return z_BCTHW[0]

    def _reconstruct(self, frames_TCHW: Tensor) -> Tensor:
        frames_BCTHW: Tensor = self.vae.decode(self._encode(frames_TCHW)[None]).sample
        return rearrange(frames_BCTHW[0].float().cpu(), "C T H W -> T C H W")

    def _clip(self, rng: np.random.Generator, frames: int, crop: int) -> tuple[Tensor, Tensor]:
        scene = random_scene(int(rng.integers(2**40)))
        first = int(rng.integers(_LONGEST_START))
        top, left = rng.integers(SIZE - crop + 1, size=2)
        window = np.s_[:, top : top + crop, left : left + crop]
        picture_THWC, owner_THW = draw_with_owners(scene, first, frames)
        owned_THW = torch.from_numpy(owner_THW[window] >= 0).float()
        # two pixels around a thing count as it, for its edge
        near_THW = F.max_pool2d(owned_THW[:, None], 5, stride=1, padding=2)[:, 0]
        clip_CTHW = rearrange(_unit(picture_THWC[window]), "T C H W -> C T H W")
        return clip_CTHW, near_THW


def _first_vae(arch: VaeArch) -> Any:
    vae = build_vae(arch)
    start_frame_by_frame(vae)
    start_from_identity(vae)
    return vae


def _vae_of(folder: Path, arch: VaeArch) -> Any:
    return load_vae(folder, arch, device="cpu", dtype=torch.float32)


@torch.no_grad()
def start_frame_by_frame(vae: nn.Module) -> None:
    """Convolutions that see the newest frame alone: short clips then teach what holds for long.

    From the usual start, a VAE taught on five frames turned the sixteenth another colour. Those
    that halve or double time begin by passing on what they see.
    """
    for module in vae.modules():
        if not isinstance(module, nn.Conv3d) or module.kernel_size[0] != 3:
            continue
        newest = module.weight[:, :, -1] * 3**0.5  # of the three frames' variance
        if module.kernel_size[1] == 1:
            same = torch.eye(module.in_channels)[:, :, None, None]
            newest = same.repeat(module.out_channels // module.in_channels, 1, 1, 1)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
        module.weight.zero_()
        module.weight[:, :, -1] = newest


@torch.no_grad()
def start_from_identity(vae: nn.Module) -> None:
    """Residual branches that add nothing yet: what a pixel is reaches the latents at once.

    After 100 steps the error was a third lower than from the usual start.
    """
    for module in vae.modules():
        last: Any = None
        if isinstance(module, WanResidualBlock):
            last = module.conv2
        elif isinstance(module, WanAttentionBlock):
            last = module.proj
        if last is not None:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)


def channels_last(vae: nn.Module) -> None:
    """Weights as convolutions on CPUs and tensor cores like them; their values stay."""
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.to(memory_format=torch.channels_last_3d)
        elif isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.to(memory_format=torch.channels_last)


def whole_clip(split: Split, number: int, first: int, frames: int) -> Tensor:
    """T C H W in [-1, 1]."""
    return _unit(draw_with_owners(random_scene(number, split), first, frames)[0])


def _unit(picture_THWC: np.ndarray[Any, Any]) -> Tensor:
    clip_TCHW = rearrange(torch.from_numpy(picture_THWC), "T H W C -> T C H W")
    return clip_TCHW.float() / 127.5 - 1


def _clip_batch(frames_TCHW: Tensor) -> Tensor:
    return rearrange(frames_TCHW, "T C H W -> 1 C T H W")
