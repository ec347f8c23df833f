"""How a DiT is taught to prefer what was asked for to what it makes itself and is wrong.

A pair is two videos of one prompt: a right one, of the world or its own, and a wrong one of its
own. Under the same noise the model's error on the right one is to fall against that on the wrong
one, each measured from the model as it began (preferences of a diffusion model, as in
Diffusion-DPO). The ordinary loss is learnt beside it, so that all that the model knew stays. Words
keep their meaning: a student of the model reads them as well.

P pairs, B both videos of all pairs, C channels, T latents, H height, W width, S text tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import repeat
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ...configs.train_small import PreferTraining
from ...models.wan import WanDiT
from .attempts import Attempts
from .dit_recipe import DitLoss, DitRecipe, stack, velocity_error
from .patterns import draw_levels
from .recipe import Batch, compile_layers

_OF_THE_WORLD = 0.5  # of the right videos, where there are right attempts too


class PreferLoss(nn.Module):
    """The ordinary loss, and beside it that of the pairs."""

    def __init__(self, plain: DitLoss, reference: WanDiT, beta: float, weight: float) -> None:
        super().__init__()
        self.plain = plain
        self.plain.text.requires_grad_(False)
        self.reference = reference.requires_grad_(False).eval()
        self._beta, self._weight = beta, weight

    def forward(
        self, *, right_PCTHW: Tensor, wrong_PCTHW: Tensor, **batch: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        pair = {name: batch.pop(f"pair_{name}") for name in ("sigma", "told", "learnt", "ids")}
        plain, _ = self.plain(**batch)
        margin_P = self._margin(right_PCTHW, wrong_PCTHW, **pair)
        # divided by its slope, so that a pair that is not yet learnt pulls as the plain loss does
        paired = -logsigmoid(self._beta * margin_P).mean() * 2 / self._beta
        preferred = (margin_P > 0).float().mean().item()
        return plain + self._weight * paired, {"plain": plain.item(), "preferred": preferred}

    def _margin(
        self,
        right_PCTHW: Tensor,
        wrong_PCTHW: Tensor,
        *,
        sigma: Tensor,
        told: Tensor,
        learnt: Tensor,
        ids: Tensor,
    ) -> Tensor:
        """How much more the error has fallen on the right than on the wrong one, (P,)."""
        clean_BCTHW = torch.cat([right_PCTHW, wrong_PCTHW]).float()
        sigma_BT, told_BT, learnt_BT, ids_BS = (
            repeat(rows, "p n -> (two p) n", two=2) for rows in (sigma, told, learnt, ids)
        )
        noise_BCTHW = torch.randn_like(clean_BCTHW[: len(sigma)]).repeat(2, 1, 1, 1, 1)
        text_BSD = self.plain.text(ids_BS, self.plain.text.mask(ids_BS))

        def error(dit: WanDiT) -> Tensor:
            off_BT = velocity_error(dit, clean_BCTHW, noise_BCTHW, sigma_BT, told_BT, text_BSD)
            return (off_BT * learnt_BT).sum(1) / learnt_BT.sum(1).clamp(min=1)

        with torch.no_grad():
            before_B = error(self.reference)
        right_P, wrong_P = (error(self.plain.dit) - before_B).chunk(2)
        return wrong_P - right_P


class PreferRecipe:
    """Batches of the ordinary recipe, and pairs of one length beside them."""

    recordable = False  # its figures are read from every step

    def __init__(
        self,
        plain: DitRecipe,
        attempts: Sequence[Attempts],
        *,
        seed: int,
        mix: PreferTraining,
        shift: float,
        compiled: bool = False,
    ) -> None:
        reference = WanDiT(plain.dit.arch)
        reference.load_state_dict(plain.dit.state_dict())
        if compiled:
            compile_layers(reference)
        self.model = PreferLoss(plain.model, reference, mix.beta, mix.weight)
        self._plain, self._clips, self._seed, self._mix = plain, plain.model.clips, seed, mix
        self._shift = shift
        self._numbers = {seed: number for number, seed in enumerate(self._clips.seeds)}
        self._of_length: dict[int, list[Attempts]] = {}
        for one in attempts:
            if one.wrong:
                self._of_length.setdefault(one.videos_KCTHW.shape[2], []).append(one)

    def batch(self, step: int, rank: int, num_ranks: int) -> Batch:
        rng = np.random.Generator(np.random.PCG64([self._seed, step, rank, 1]))
        mix, lengths = self._mix, sorted(self._of_length)
        counts = np.array([len(self._of_length[length]) for length in lengths])
        latents = int(rng.choice(lengths, p=counts / counts.sum()))
        prompts = self._of_length[latents]
        num_pairs = max(1, mix.latents // (2 * latents))
        chosen = [prompts[n] for n in rng.integers(len(prompts), size=num_pairs)]
        levels = [draw_levels(rng, latents, self._shift, mix.one_level) for _ in chosen]
        numbers = np.array([self._numbers[one.seed] for one in chosen])
        return self._plain.batch(step, rank, num_ranks) | {
            "right_PCTHW": torch.stack([self._right(one, rng) for one in chosen]),
            "wrong_PCTHW": torch.stack([one.videos_KCTHW[rng.choice(one.wrong)] for one in chosen]),
            "pair_sigma": stack([level.actual_T for level in levels]),
            "pair_told": stack([level.told_T for level in levels]),
            "pair_learnt": stack([level.learnt_T for level in levels]),
            "pair_ids": self._plain.captions(numbers, rng),
        }

    def sheet(self) -> np.ndarray[Any, Any]:
        return self._plain.sheet()

    def export(self, folder: Path) -> None:
        self._plain.export(folder)

    def _right(self, one: Attempts, rng: np.random.Generator) -> Tensor:
        """The clip of the world that the prompt is of, or an attempt that is as right."""
        if one.right and rng.random() >= _OF_THE_WORLD:
            return one.videos_KCTHW[rng.choice(one.right)]
        latents = one.videos_KCTHW.shape[2]
        return self._clips.clips_NCTHW[self._numbers[one.seed], :, :latents].cpu()
