"""How the small DiT is learnt: flow matching on windows of the world's latents, in mixed patterns.

B batch, C channels, T latents, H height, W width, S text tokens. Velocity is noise minus clean.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...configs.train_small import DitTraining
from ...models.arch import ModelArch
from ...models.checkpoint import open_transformer
from ...models.wan import WanDiT
from ...models.weights import Weights, load_module
from ..world.captions import caption, vocabulary
from ..world.scene import random_scene
from .export import save_transformer, save_vae
from .feed import made_ahead
from .latents import LatentClips
from .patterns import draw_levels
from .recipe import Batch, compile_layers
from .sample import held_out_prompts, sample_whole, strips, velocity
from .text_side import TextSide

_SHEET_ROWS = 6
_SHEET_LATENTS = 11
_TELLING = 0.5  # noise through which a latent shows what it is
_CAPTIONS = 6  # of a clip
_EMPTY = 0.1  # of the prompts, so that guidance has something to be guided away from


class DitLoss(nn.Module):
    """Squared error of the velocity, over the latents that are to be learnt."""

    def __init__(self, dit: WanDiT, text: TextSide, clips: LatentClips) -> None:
        super().__init__()
        self.dit, self.text, self.clips = dit, text, clips

    def forward(self, **batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        sigma_BT = batch["sigma_BT"]
        clean = self.clips.windows(batch["numbers_B"], batch["starts_B"], sigma_BT.shape[1])
        noise_BCTHW = torch.randn_like(clean)
        sigma = sigma_BT[:, None, :, None, None]
        noisy_BCTHW = (1 - sigma) * clean + sigma * noise_BCTHW
        text_BSD = self.text(batch["ids_BS"], batch["mask_BS"])
        made_BCTHW = velocity(self.dit, noisy_BCTHW, batch["told_BT"], text_BSD)
        off_BT = (made_BCTHW - (noise_BCTHW - clean)).square().mean(dim=(1, 3, 4))
        learnt_BT = batch["learnt_BT"]
        return (off_BT * learnt_BT).sum() / learnt_BT.sum().clamp(min=1), {}


class DitRecipe:
    """Batches of windows cut anywhere from the clips, all of one length."""

    recordable = True

    def __init__(
        self,
        arch: ModelArch,
        clips: LatentClips,
        *,
        seed: int,
        mix: DitTraining,
        vae: Any,
        vae_folder: Path,
        start: Path | None = None,
        workers: int = 0,
    ) -> None:
        torch.manual_seed(seed)
        self.dit = WanDiT(arch.dit)
        start_from_identity(self.dit)
        self.text = TextSide(vocabulary(), text_len=arch.text_len, text_dim=arch.dit.text_dim)
        if start is not None:
            here: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}
            load_module(self.dit, open_transformer(start / "transformer", arch.dit), **here)
            words = Weights(start / "text_encoder", field="dit.start")
            load_module(self.text.encoder, words, **here)
        if mix.compiled:
            compile_layers(self.dit)
        self.model = DitLoss(self.dit, self.text, clips)
        self._clips, self._seed, self._mix = clips, seed, mix
        self._ids_NKS, self._empty_S = self._read_captions(workers)
        self._vae, self._vae_folder, self._vae_arch = vae, vae_folder, arch.vae

    def batch(self, step: int, rank: int, num_ranks: int) -> Batch:
        rng = np.random.Generator(np.random.PCG64([self._seed, step, rank]))
        mix = self._mix
        latents = _window(rng, mix.shortest, self._longest(step))
        at_start = rng.random() < mix.first
        rows = max(1, mix.latents // latents)
        of_clips = self._clips.openings if at_start else len(self._clips)
        numbers = rng.choice(of_clips, size=rows)
        starts = rng.integers(1, self._clips.latents - latents + 1, size=rows) * (not at_start)
        # a window all in noise is a video's beginning: nothing else would tell it from a later one
        one_level = mix.one_level if at_start else 0.0
        levels = [draw_levels(rng, latents, mix.shift, one_level, mix.pattern) for _ in range(rows)]
        learnt_BT = _stack([level.learnt_T for level in levels])
        if not at_start:
            # Nothing in noise tells a video's first latent, which is one frame, from another, as
            # rotary positions are relative. A window's first is taken for the video's.
            learnt_BT[:, 0] *= _stack([level.actual_T < _TELLING for level in levels])[:, 0]
        ids_BS = self._ids_NKS[numbers, rng.integers(_CAPTIONS, size=rows)].long()
        ids_BS[torch.from_numpy(rng.random(rows) < _EMPTY)] = self._empty_S
        return {
            "numbers_B": torch.from_numpy(numbers),
            "starts_B": torch.from_numpy(starts),
            "sigma_BT": _stack([level.actual_T for level in levels]),
            "told_BT": _stack([level.told_T for level in levels]),
            "learnt_BT": learnt_BT,
            "ids_BS": ids_BS,
            "mask_BS": self.text.mask(ids_BS),
        }

    @torch.no_grad()
    def sheet(self) -> np.ndarray[Any, Any]:
        """Held-out prompts as whole videos: a row each."""
        latents_BCTHW = sample_whole(
            self.dit,
            self.text,
            held_out_prompts(_SHEET_ROWS),
            self._clips.shape(min(_SHEET_LATENTS, self._mix.longest)),
            shift=self._mix.shift,
        )
        return strips(self._vae, latents_BCTHW)

    def export(self, folder: Path) -> None:
        """In the diffusers layout: transformer/, vae/, text_encoder/, tokenizer/."""
        save_transformer(self.dit, folder / "transformer")
        self.text.export(folder)
        save_vae(self._vae_folder, self._vae_arch, folder / "vae")

    def _longest(self, step: int) -> int:
        """Of the windows of a step: short ones, many to a batch, teach what things look like."""
        mix = self._mix
        share = min(1.0, (step / mix.grow) ** 2) if mix.grow else 1.0
        return max(mix.shortest, round(share * mix.longest))

    def _read_captions(self, workers: int) -> tuple[Tensor, Tensor]:
        """Ids of some captions of every clip, (N, K, S), and those of no prompt, (S,)."""

        def ids(number: int) -> Tensor:
            scene = random_scene(self._clips.seeds[number])
            captions = [caption(scene, number * _CAPTIONS + k) for k in range(_CAPTIONS)]
            return self.text.tokens(captions)[0].to(torch.int16)

        each_KS = made_ahead(ids, range(len(self._clips)), workers)
        return torch.stack([ids_KS.clone() for ids_KS in each_KS]), self.text.tokens([""])[0][0]


def start_from_identity(dit: WanDiT) -> None:
    """Layers that change nothing and a velocity of zero, from which a deep model learns best."""
    for name, parameter in dit.named_parameters():
        starts = name.startswith(("proj_out", "condition_embedder.time_proj"))
        if starts or name.endswith("scale_shift_table"):
            nn.init.zeros_(parameter)


def _window(rng: np.random.Generator, shortest: int, longest: int) -> int:
    """Evenly by its logarithm: short windows are many scenes to a batch, long ones few."""
    return int(shortest * ((longest + 1) / shortest) ** rng.random())


def _stack(rows: list[np.ndarray[Any, Any]]) -> Tensor:
    return torch.from_numpy(np.stack(rows).astype(np.float32))
