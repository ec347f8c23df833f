"""Gaussian noise as a pure function of (seed, latent index, shape), the same wherever it is drawn.

C channels, H height, W width of a latent; T latents of a window.
"""

import hashlib
import operator

import numpy as np
import torch
from torch import Tensor

SEED_LIMIT = 2**63
_STREAM_WORD = 3  # the highest word of Philox's counter; drawing counts up the lowest


def latent_noise(seed: int, index: int, shape: tuple[int, int, int]) -> Tensor:
    """The noise latent `index` of the video starts from: C, H, W, float32 on the CPU."""
    return _draw(seed, index, shape, stream=0)


def renoise(seed: int, index: int, step: int, shape: tuple[int, int, int]) -> Tensor:
    """Fresh noise that step `step` of a few-step solver adds to latent `index`."""
    assert step >= 0, step
    return _draw(seed, index, shape, stream=step + 1)


def window_noise(
    seed: int, first: int, count: int, shape: tuple[int, int, int], step: int | None = None
) -> Tensor:
    """Latents first .. first + count - 1 as 1, C, T, H, W; with `step`, that step's fresh noise."""
    assert count >= 1, count
    indices = range(first, first + count)
    if step is None:
        noise = [latent_noise(seed, index, shape) for index in indices]
    else:
        noise = [renoise(seed, index, step, shape) for index in indices]
    return torch.stack(noise, dim=1)[None]


def check_seed(seed: int) -> int:
    """A seed is one 64-bit word of the key, kept positive so that it fits where int64 is stored.

    It is returned as an int, whatever kind of whole number it was."""
    try:
        seed = operator.index(seed)
    except TypeError:
        raise ValueError(
            f"seed={seed!r} is no whole number, so it cannot key the noise; write it like seed=7"
        ) from None
    if not 0 <= seed < SEED_LIMIT:
        raise ValueError(
            f"seed={seed} cannot key the noise, which takes 0 to {SEED_LIMIT - 1}; "
            f"choose one in that range, for example {seed % SEED_LIMIT}"
        )
    return seed


def _draw(seed: int, index: int, shape: tuple[int, int, int], stream: int) -> Tensor:
    check_seed(seed)
    assert index >= 0, index
    counter = np.zeros(4, dtype=np.uint64)
    counter[_STREAM_WORD] = stream
    bits = np.random.Philox(key=np.array([seed, index], dtype=np.uint64), counter=counter)
    # Drawn in double: numpy's sampler compares with the platform's exp and log, where a float32
    # tie decided the other way would shift everything drawn after it.
    noise = np.random.Generator(bits).standard_normal(shape)
    return torch.from_numpy(noise.astype(np.float32))


def revision_seed(seed: int, revision: int) -> int:
    """A pure function of both; that of the first video is its own."""
    if not revision:
        return seed
    words = hashlib.sha256(f"{seed} {revision}".encode()).digest()
    return int.from_bytes(words[:8], "little") % SEED_LIMIT
