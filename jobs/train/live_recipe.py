"""How the causal student is learnt: chunks over a clean past, at its few levels, guided by itself.

B batch, C channels, T latents, H height, W width, S text tokens. Velocity is noise minus clean.

The student sees a chunk's past alone: the video's first chunk (the sink) and those just before. Its
target is the data's velocity moved along the difference that a prompt makes to the teacher, so that
it needs no guidance of its own. Levels are those it will be asked at, and the past bears a little
untold noise, since at work it is the student's own.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import repeat
from torch import Tensor, nn

from ...configs.train_small import LiveTraining
from ...models.arch import ModelArch
from ...models.checkpoint import locate
from ...models.text import TextSource, encode_prompts
from ...models.wan import WanDiT
from ...models.wan_load import load_dit
from ..world.captions import caption
from ..world.scene import random_scene
from .export import save_transformer
from .latents import LatentClips
from .patterns import shifted
from .recipe import Batch, compile_layers
from .sample import held_out_prompts, strips, velocity

_SHEET_ROWS = 6
_SHEET_CHUNKS = 4
_AT_LEVELS = 0.7  # of the chunks have one of the few levels, the others any


class LiveLoss(nn.Module):
    """Squared error of the velocity of the chunks that are not clean."""

    texts_NSD: Tensor
    empty_SD: Tensor

    def __init__(
        self,
        dit: WanDiT,
        teacher: WanDiT,
        clips: LatentClips,
        texts_NSD: Tensor,
        empty_SD: Tensor,
        *,
        chunk: int,
        guidance: float,
    ) -> None:
        super().__init__()
        self.dit, self.teacher, self.clips = dit, teacher.requires_grad_(False), clips
        self.register_buffer("texts_NSD", texts_NSD, persistent=False)
        self.register_buffer("empty_SD", empty_SD, persistent=False)
        self._chunk, self._guidance = chunk, guidance

    def windows(self, numbers_B: Tensor, starts_B: Tensor, latents: int) -> Tensor:
        """B C T H W: the sink, and after it a run of the same clip."""
        chunk = self._chunk
        sinks = self.clips.windows(numbers_B, torch.zeros_like(starts_B), chunk)
        runs = self.clips.windows(numbers_B, starts_B, latents - chunk)
        return torch.cat([sinks, runs], dim=2)

    def forward(self, **batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        numbers_B, sigma_BT, told_BT = (batch[k] for k in ("numbers_B", "sigma_BT", "told_BT"))
        clean = self.windows(numbers_B, batch["starts_B"], sigma_BT.shape[1])
        noise = torch.randn_like(clean)
        sigma = sigma_BT[:, None, :, None, None]
        noisy_BCTHW = (1 - sigma) * clean + sigma * noise
        text_BSD = self.texts_NSD[numbers_B]
        empty_BSD = repeat(self.empty_SD, "s d -> b s d", b=len(numbers_B))
        with torch.no_grad():
            pair = velocity(
                self.teacher,
                repeat(noisy_BCTHW, "b ... -> (two b) ...", two=2),
                repeat(told_BT, "b t -> (two b) t", two=2),
                torch.cat([text_BSD, empty_BSD]),
            )
            wanted, empty = pair.chunk(2)
        target = noise - clean + (self._guidance - 1) * (wanted - empty)
        made = velocity(self.dit, noisy_BCTHW, told_BT, text_BSD, causal=self._chunk)
        off_BT = (made - target).square().mean(dim=(1, 3, 4))
        learnt_BT = (told_BT > 0).float()
        return (off_BT * learnt_BT).sum() / learnt_BT.sum().clamp(min=1), {}


class LiveRecipe:
    """Windows of a sink and a run of chunks from anywhere in the clip."""

    recordable = True

    def __init__(
        self,
        arch: ModelArch,
        start: Path,
        clips: LatentClips,
        *,
        seed: int,
        mix: LiveTraining,
        vae: Any,
    ) -> None:
        torch.manual_seed(seed)
        assert arch.causal_latents, "a student sees chunks of some length"
        self.dit, teacher = (
            load_dit(
                start / "transformer", arch.dit, device=torch.device("cpu"), dtype=torch.float32
            )
            for _ in range(2)
        )
        self.dit.requires_grad_(True)
        if mix.compiled:
            compile_layers(self.dit, teacher)
        self._arch, self._start, self._clips, self._vae = arch, start, clips, vae
        self._seed, self._mix = seed, mix
        self.model = LiveLoss(
            self.dit,
            teacher,
            clips,
            # one embedding a clip: the student learns levels and chunks, not words
            self._embed([self._caption(n) for n in range(len(clips))]),
            self._embed([""])[0],
            chunk=arch.causal_latents,
            guidance=mix.guidance,
        )

    def batch(self, step: int, rank: int, num_ranks: int) -> Batch:
        rng = np.random.Generator(np.random.PCG64([self._seed, step, rank]))
        chunk, mix = self._arch.causal_latents, self._mix
        chunks = int(rng.integers(1, mix.chunks + 1))
        levels = [self._levels(rng, chunks) for _ in range(mix.rows)]
        actual_BT, told_BT = (
            torch.from_numpy(np.repeat(np.stack(rows), chunk, axis=1).astype(np.float32))
            for rows in zip(*levels, strict=True)
        )
        return {
            "numbers_B": torch.from_numpy(rng.choice(self._clips.openings, size=mix.rows)),
            "starts_B": torch.from_numpy(self._starts(rng, chunks)),
            "sigma_BT": actual_BT,
            "told_BT": told_BT,
        }

    @torch.no_grad()
    def sheet(self) -> np.ndarray[Any, Any]:
        """Held-out prompts, chunk after chunk: a row each."""
        text_BSD = self._embed(held_out_prompts(_SHEET_ROWS)).to(self.model.empty_SD.device)
        return strips(self._vae, self._roll_out(text_BSD, _SHEET_CHUNKS))

    def export(self, folder: Path) -> None:
        """In the diffusers layout; all but the transformer is the teacher's."""
        save_transformer(self.dit, folder / "transformer")
        for part in ("vae", "text_encoder", "tokenizer"):
            shutil.copytree(self._start / part, folder / part, dirs_exist_ok=True)

    def _roll_out(self, text_BSD: Tensor, chunks: int) -> Tensor:
        """Few-step chunks over their own past, each window run whole: plain, not fast."""
        chunk, mix = self._arch.causal_latents, self._mix
        generator = torch.Generator().manual_seed(0)
        channels, _, height, width = self._clips.shape(1)
        shape, device = (len(text_BSD), channels, chunk, height, width), text_BSD.device
        done_BCTHW = torch.zeros(len(text_BSD), channels, 0, height, width, device=device)
        sigmas = [float(shifted(timestep / 1000, mix.shift)) for timestep in mix.timesteps]
        for _ in range(chunks):
            clean_BCTHW = torch.zeros(shape, device=device)
            for sigma in sigmas:
                noise_BCTHW = torch.randn(shape, generator=generator).to(device)
                noisy_BCTHW = (1 - sigma) * clean_BCTHW + sigma * noise_BCTHW
                window_BCTHW = torch.cat([done_BCTHW, noisy_BCTHW], dim=2)
                told_BT = torch.zeros(len(text_BSD), window_BCTHW.shape[2])
                told_BT[:, -chunk:] = sigma
                made = velocity(self.dit, window_BCTHW, told_BT, text_BSD, causal=chunk)
                clean_BCTHW = noisy_BCTHW - sigma * made[:, :, -chunk:]
            done_BCTHW = torch.cat([done_BCTHW, clean_BCTHW], dim=2)
        return done_BCTHW

    def _starts(self, rng: np.random.Generator, chunks: int) -> np.ndarray[Any, Any]:
        """Of the runs after the sinks: next to it, or with a gap."""
        chunk, rows = self._arch.causal_latents, self._mix.rows
        latest = self._clips.latents - chunk * (chunks - 1)
        anywhere = rng.integers(chunk, latest + 1, size=rows)
        return np.where(rng.random(rows) < 0.3, chunk, anywhere)

    def _levels(self, rng: np.random.Generator, chunks: int) -> tuple[Any, Any]:
        """Of each chunk: the noise it has, and what it is told; a clean past, then any levels."""
        mix = self._mix
        own = rng.choice(mix.timesteps, size=chunks) / 1000
        own = np.where(rng.random(chunks) < _AT_LEVELS, own, rng.uniform(0.002, 1, chunks))
        told = np.asarray(shifted(own, mix.shift))
        past = int(rng.integers(0, chunks))
        told[:past] = 0
        actual = told.copy()
        if rng.random() < 0.5:
            actual[:past] = rng.uniform(0, mix.past_noise)
        return actual, told

    def _caption(self, number: int) -> str:
        return caption(random_scene(self._clips.seeds[number]), number)

    def _embed(self, prompts: list[str]) -> Tensor:
        source = TextSource(
            encoder=locate(str(self._start), "text_encoder", "live.start"),
            tokenizer=locate(str(self._start), "tokenizer", "live.start"),
            text_len=self._arch.text_len,
            text_dim=self._arch.dit.text_dim,
            field="live.start",
        )
        return encode_prompts(prompts, source, device="cpu", dtype=torch.float32, cache=None)
