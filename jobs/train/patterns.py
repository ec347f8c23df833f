"""Noise patterns: which level each latent of a training window has, and which it is told.

What every block schedule asks of a model is drawn here: whole videos of one level, queues and
moving buffers of rising levels with any partition, clean and slightly noised prefixes, diffusion
forcing, and a context that is cleaner than the one level its window is told.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

ONE_LEVEL = "equal"
PATTERNS = {  # shares of the windows of many levels
    "prefix": 0.31,
    "stairs": 0.38,
    "rising": 0.13,
    "independent": 0.06,
    "untold": 0.12,
}
_CHUNKS = (1, 2, 3, 4, 5, 8)
_NOISED_PREFIX = 0.02


@dataclass(frozen=True)
class Levels:
    """Per latent: its sigma, the sigma it is told, and whether its velocity is learnt."""

    actual_T: Array
    told_T: Array
    learnt_T: Array


def draw_levels(
    rng: np.random.Generator, latents: int, shift: float, one_level: float = 0.0, only: str = ""
) -> Levels:
    """One window's pattern: of one level in that share of the draws; `only` names it always."""
    name = only or str(rng.choice(list(PATTERNS), p=list(PATTERNS.values())))
    if latents == 1 or (not only and rng.random() < one_level):
        name = ONE_LEVEL
    actual_T = DRAWN[name](rng, latents, shift)
    told_T, learnt_T = actual_T, (actual_T > 0) & (actual_T != _NOISED_PREFIX)
    if name == "untold":
        told_T = np.full(latents, actual_T[-1])
        learnt_T = actual_T == told_T
    return Levels(actual_T, told_T, learnt_T)


def shifted(sigma: Array | float, shift: float) -> Any:
    """Towards noise, as a sampler's levels are."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def _sigma(rng: np.random.Generator, shift: float) -> float:
    return float(shifted(rng.uniform(0.002, 1.0), shift))


def _equal(rng: np.random.Generator, latents: int, shift: float) -> Array:
    return np.full(latents, _sigma(rng, shift))


def _prefix(rng: np.random.Generator, latents: int, shift: float) -> Array:
    """A finished past, clean or with a little noise, and one level after it."""
    level_T = _equal(rng, latents, shift)
    level_T[: rng.integers(1, latents)] = rng.choice([0.0, _NOISED_PREFIX])
    return level_T


def _stairs(rng: np.random.Generator, latents: int, shift: float) -> Array:
    """Chunks whose levels rise in equal steps; what falls outside is clean, or all noise."""
    size, step = rng.choice(_CHUNKS), rng.choice([1.0, 0.5, 0.25, 0.1, 0.04])
    stair_T = (np.arange(latents) + rng.integers(size)) // size
    anchor = stair_T[rng.integers(latents)]
    return np.asarray(shifted(np.clip(rng.random() + step * (stair_T - anchor), 0, 1), shift))


def _rising(rng: np.random.Generator, latents: int, shift: float) -> Array:
    return np.sort(_independent(rng, latents, shift))


def _independent(rng: np.random.Generator, latents: int, shift: float) -> Array:
    return np.asarray(shifted(rng.uniform(0.002, 1.0, latents), shift))


def _untold(rng: np.random.Generator, latents: int, shift: float) -> Array:
    """A queue that tells its window one level: the past is a step cleaner, or finished."""
    level_T = _equal(rng, latents, shift)
    past = slice(0, rng.integers(1, latents))
    level_T[past] *= rng.choice([0.0, 0.9, 0.97])
    return level_T


DRAWN = {
    ONE_LEVEL: _equal,
    "prefix": _prefix,
    "stairs": _stairs,
    "rising": _rising,
    "independent": _independent,
    "untold": _untold,
}
