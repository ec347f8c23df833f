"""A Frechet distance between clips and the world, over features of a small fixed random network.

The other metrics look for faults we thought of. Filters that nobody chose see texture, edges and
change over time alike, so that what they miss can still show here. The weights are a seed's, so
that the numbers of different days and machines compare; no weights have to be shipped.

B windows, C channels, T frames, H height, W width, N windows, D features.
"""

from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..world.draw import draw
from ..world.scene import random_scene

Array = np.ndarray[Any, Any]

WINDOW = 16  # frames
MOST_WINDOWS = 8  # of a clip
_REFERENCES = 256
_FIRST_REFERENCE = 1_000_000  # held-out scenes that no prompt of an evaluation is of
_LONGEST_START = 1000
_SEED = 7
_WIDTHS = (3, 16, 32, 32)


def features(frames_THWC: Array) -> Array:
    """N D: of up to eight windows of 16 frames, evenly placed.

    Frames in [-1, 1]; three convolutions (3 x 3 x 3, stride 2, rectified, of 16, 32 and 32
    channels) with weights from a seed, every other filter without a mean, so that it sees edges
    and change and no colour; the mean over a window of every channel of the three.
    """
    count = min(MOST_WINDOWS, len(frames_THWC) // WINDOW)
    starts = np.linspace(0, len(frames_THWC) - WINDOW, count).astype(int)
    if not count:
        return np.zeros((0, sum(_WIDTHS[1:])))
    windows = np.stack([frames_THWC[start : start + WINDOW] for start in starts])
    x_BCTHW = torch.from_numpy(windows).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    means = []
    for weight, bias in _weights():
        x_BCTHW = F.relu(F.conv3d(x_BCTHW, weight, bias, stride=2, padding=1))
        means.append(x_BCTHW.mean(dim=(2, 3, 4)))
    return torch.cat(means, dim=1).double().numpy()


@cache
def reference_features() -> Array:
    """N D: windows of held-out scenes of the world that no prompt is of; not to be written to."""
    rng = np.random.Generator(np.random.PCG64([_SEED, 1]))
    drawn = np.concatenate(
        [
            features(
                draw(
                    random_scene(_FIRST_REFERENCE + number, "held-out"),
                    int(rng.integers(_LONGEST_START)),
                    WINDOW,
                )
            )
            for number in range(_REFERENCES)
        ]
    )
    drawn.setflags(write=False)
    return drawn


def frechet_distance(features_ND: Array, reference_ND: Array) -> float | None:
    """Between the two as normal distributions, in the reference's standard deviations squared.

    None of fewer than two windows. Few windows are far from anything, so compare equal numbers.
    """
    if len(features_ND) < 2:
        return None
    scale = reference_ND.std(axis=0) + 1e-9
    one, other = features_ND / scale, reference_ND / scale
    off = one.mean(axis=0) - other.mean(axis=0)
    cov_one, cov_other = np.cov(one.T), np.cov(other.T)
    root = _root(cov_one)
    shared = np.linalg.eigvalsh(root @ cov_other @ root).clip(min=0)
    trace = np.trace(cov_one) + np.trace(cov_other) - 2 * np.sqrt(shared).sum()
    return float(off @ off + max(0.0, trace))


def _root(matrix_DD: Array) -> Array:
    values, vectors = np.linalg.eigh(matrix_DD)
    root: Array = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return root


@cache
def _weights() -> list[tuple[Tensor, Tensor]]:
    rng = np.random.Generator(np.random.PCG64([_SEED, 0]))  # numpy keeps its streams
    layers = []
    for fan, width in pairwise(_WIDTHS):
        weight = rng.normal(0, np.sqrt(2 / (fan * 27)), (width, fan, 3, 3, 3))
        weight[::2] -= weight[::2].mean(axis=(1, 2, 3, 4), keepdims=True)
        bias = rng.normal(0, 0.1, width)
        layers.append((torch.from_numpy(weight).float(), torch.from_numpy(bias).float()))
    return layers
