"""What changes from frame to frame and should not: seams, flicker, drift of the ground.

T frames, H height, W width, C colours.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..world.track import HUNDRED, Tracked

Array = np.ndarray[Any, Any]

_NEIGHBOURS = 3  # steps on either side of a border that it is compared with
_STILL = 0.02  # gray levels of change that count as none


def seam_ratio(frames_THWC: Array, borders: Sequence[int], stride: int = 4) -> float | None:
    """Change into the first frame of a block, over the same inside blocks; 1 is ideal.

    `borders` are numbers of the first frames of blocks. Inside is where latents begin, every
    `stride` frames, so that the VAE's own rhythm is in both. Compared with near steps alone, as
    things do not move equally much at all times. None without a border.
    """
    inner = [border for border in borders if 0 < border < len(frames_THWC)]
    at_border, inside = [], []
    for border in inner:
        near = [
            border + stride * n
            for n in range(-_NEIGHBOURS, _NEIGHBOURS + 1)
            if border + stride * n not in inner and 0 < border + stride * n < len(frames_THWC)
        ]
        if near:
            at_border.append(_change(frames_THWC, border))
            inside.append(float(np.mean([_change(frames_THWC, t) for t in near])))
    if not at_border:
        return None
    return float((np.mean(at_border) + _STILL) / (np.mean(inside) + _STILL))


def flicker(tracked: Tracked, borders: Sequence[int]) -> float:
    """Gray levels that a colour goes off and comes back within three frames, inside blocks; 0.

    Of the ground, as nine tiles less the pattern that moves with the camera, or of the things,
    whichever is greater.
    """
    crossed = {t + off for t in borders for off in (-1, 0)}
    inside = [t for t in range(1, tracked.num_frames - 1) if t not in crossed]
    tiles_TYXC = tracked.backdrop.residual_TYXC
    bends = tiles_TYXC[2:] - 2 * tiles_TYXC[1:-1] + tiles_TYXC[:-2]
    ground = np.abs(bends[[t - 1 for t in inside]])
    things = [
        np.abs(np.array(one.seen[t + 1].rgb) - 2 * np.array(one.seen[t].rgb) + one.seen[t - 1].rgb)
        for one in tracked.things
        for t in inside
        if {t - 1, t, t + 1} <= one.clear.keys()
    ]
    return float(max(_nanmean(ground), _nanmean(np.array(things)))) / 2


def drift(tracked: Tracked) -> float:
    """Gray levels between the ground of the first hundred frames and the furthest other; 0.

    Means over runs of a hundred frames (half the clip, if it is shorter than two of them), tile by
    tile.
    """
    length = min(HUNDRED, tracked.num_frames // 2)
    tiles_TYXC = tracked.backdrop.residual_TYXC
    runs = [
        _nanmean(tiles_TYXC[start : start + length], axis=0)
        for start in range(0, tracked.num_frames - length + 1, max(1, length))
    ]
    return max((_nanmean(np.abs(run - runs[0])) for run in runs), default=0.0)


def _change(frames_THWC: Array, t: int) -> float:
    return float(np.abs(frames_THWC[t].astype(np.int16) - frames_THWC[t - 1]).mean())


def _nanmean(values: Array, axis: int | None = None) -> Any:
    """The mean of what is seen: nan, or 0 over everything, where that is nothing."""
    seen = ~np.isnan(values)
    total = seen.sum(axis=axis)
    mean = np.where(seen, values, 0).sum(axis=axis) / np.where(total, total, 1)
    return float(mean) if axis is None else np.where(total, mean, np.nan)
