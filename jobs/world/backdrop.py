"""The ground of a clip, found in its frames: kind, colours, and how it looks behind the things.

T frames, H height, W width, C colours, P phases of the checks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from .draw import checks
from .words import CHECK, GROUND_COLOURS, SIZE, THING_COLOURS

Array = np.ndarray[Any, Any]

_CHUNK = 64  # frames worked on at once
_LEAST_CONTRAST = 35.0  # of two colours; the nearest two grounds are 71 apart
_LEAST_EXPLAINED = 0.5  # of the variance about one colour, for a pattern to be there
_LEAST_SHOWN = 0.1  # of the pixels, away from what is coloured
_MOST_RESIDUAL = 40.0  # gray levels about the pattern; even noise is 74 about its mean
_KNOWN = 50.0  # gray levels between a colour and its name
_PHASES = 4  # a pixel


@dataclass(frozen=True, kw_only=True, eq=False)
class Backdrop:
    """What lies behind the things. A colour without a name is an empty string."""

    kind: str  # plain, gradient, checkered, or unclear
    colours: tuple[str, ...]  # of a gradient from its left or its top
    across: bool
    picture_THWC: Array  # bytes: the ground alone, fitted to each frame
    residual_TYXC: Array  # 3 x 3 tiles: gray levels from the clip's median ground; nan: unseen


def find_backdrop(frames_THWC: Array) -> Backdrop:
    """The pattern that explains the pixels that no thing has coloured."""
    fits = [_fit(frames_THWC[at]) for at in _chunks(len(frames_THWC))]
    errors = {kind: sum(fit[kind].error for fit in fits) for kind in fits[0]}
    ends = {
        kind: np.concatenate([fit[kind].ends_T2C for fit in fits]) for kind in fits[0]
    }  # colours where the pattern is 0 and 1
    best = min((kind for kind in errors if kind != "plain"), key=lambda kind: errors[kind])
    contrast = np.linalg.norm(np.median(np.diff(ends[best], axis=1), axis=0))
    if contrast < _LEAST_CONTRAST or errors[best] > (1 - _LEAST_EXPLAINED) * errors["plain"]:
        best = "plain"
    shown = float(np.mean([fit["plain"].seen_THW.mean() for fit in fits]))
    unclear = shown < _LEAST_SHOWN or errors[best] > _MOST_RESIDUAL**2 * len(fits)
    median_2C = np.median(ends[best], axis=0)
    pattern = {"across": "gradient", "down": "gradient"}.get(best, best)
    pictures, residuals = [], []
    for at, fit in zip(_chunks(len(frames_THWC)), fits, strict=True):
        mix_THW = fit[best].mix_THW
        first_TC, last_TC = ends[best][at, 0], ends[best][at, 1]
        picture_THWC = np.rint(_blend(mix_THW, first_TC, last_TC)).clip(0, 255)
        pictures.append(picture_THWC.astype(np.uint8))
        off_THWC = frames_THWC[at] - _blend(
            mix_THW, *np.broadcast_to(median_2C[:, None], (2, 1, 3))
        )
        residuals.append(_tiles(off_THWC, fit[best].seen_THW))
    return Backdrop(
        kind="unclear" if unclear else pattern,
        colours=tuple(_name(colour) for colour in median_2C[: 1 if best == "plain" else 2]),
        across=best != "down",
        picture_THWC=np.concatenate(pictures),
        residual_TYXC=np.concatenate(residuals),
    )


def like_ground(pixels_NC: Array) -> Array:
    """How far colours are from what grounds can show: any ground, or a mixture of two."""
    ends = np.array([*GROUND_COLOURS.values()], np.float32)
    best = np.full(len(pixels_NC), np.inf, np.float32)
    for i, one in enumerate(ends):
        for other in ends[i + 1 :]:
            way = other - one
            share = np.clip((pixels_NC - one) @ way / (way @ way), 0, 1)
            off = pixels_NC - one - share[:, None] * way
            best = np.minimum(best, np.einsum("nc,nc->n", off, off))
    return np.sqrt(best)


def grown(mask_THW: Array, pixels: int) -> Array:
    """A mask with everything so near to it."""
    wide = mask_THW.copy()
    for axis in (-2, -1):
        target = np.moveaxis(wide, axis, 0)  # a view: what is written stays
        source = target.copy()
        for step in range(1, pixels + 1):
            target[:-step] |= source[step:]
            target[step:] |= source[:-step]
    return wide


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fit:
    """One pattern on some frames: pixel = first + mix * (last - first)."""

    mix_THW: Array
    seen_THW: Array  # pixels of the ground alone, that the fit is made on
    ends_T2C: Array
    error: float  # mean square


def _chunks(count: int) -> Iterator[slice]:
    return (slice(first, min(first + _CHUNK, count)) for first in range(0, count, _CHUNK))


def _fit(frames_THWC: Array) -> dict[str, _Fit]:
    frames_THWC = frames_THWC.astype(np.float32)
    seen_THW = ~grown(_coloured(frames_THWC), 3)
    ramp = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE
    shape = seen_THW.shape
    mix_THW, sharp_THW = _find_checks(frames_THWC, seen_THW)
    return {
        "plain": _least_squares(frames_THWC, seen_THW, np.zeros(shape, np.float32)),
        "across": _least_squares(frames_THWC, seen_THW, np.broadcast_to(ramp, shape)),
        "down": _least_squares(frames_THWC, seen_THW, np.broadcast_to(ramp[:, None], shape)),
        "checkered": _least_squares(frames_THWC, seen_THW & sharp_THW, mix_THW),
    }


def _coloured(frames_THWC: Array) -> Array:
    """Pixels nearer to a thing's colour than to any ground's."""
    red, green, blue = np.moveaxis(frames_THWC.astype(np.intp) >> 3, -1, 0)
    coloured: Array = _coloured_shades()[(red << 10) + (green << 5) + blue]
    return coloured


@cache
def _coloured_shades() -> Array:
    """The same for 32 shades a channel, red first."""
    shade = np.arange(32, dtype=np.float32) * 8 + 4
    table_NC = np.stack(np.meshgrid(shade, shade, shade, indexing="ij"), axis=-1).reshape(-1, 3)
    things = np.array([*THING_COLOURS.values()], np.float32)
    off = np.linalg.norm(table_NC[:, None] - things, axis=-1).min(axis=1)
    nearer: Array = off < like_ground(table_NC)
    return nearer


def _least_squares(frames_THWC: Array, seen_THW: Array, mix_THW: Array) -> _Fit:
    weight = seen_THW.astype(np.float32)
    total = weight.sum(axis=(1, 2)) + 1e-6
    weighted = weight * mix_THW
    mean_mix = weighted.sum(axis=(1, 2)) / total
    mean_TC = np.einsum("thw,thwc->tc", weight, frames_THWC) / total[:, None]
    spread = (weighted * mix_THW).sum(axis=(1, 2)) / total - mean_mix**2
    joint_TC = np.einsum("thw,thwc->tc", weighted, frames_THWC) / total[:, None]
    slope_TC = (joint_TC - mean_mix[:, None] * mean_TC) / np.maximum(spread, 1e-6)[:, None]
    slope_TC[spread < 1e-4] = 0
    first_TC = mean_TC - mean_mix[:, None] * slope_TC
    off_THWC = frames_THWC - _blend(mix_THW, first_TC, first_TC + slope_TC)
    error_THW = np.square(off_THWC).mean(axis=-1)
    return _Fit(
        mix_THW=mix_THW,
        seen_THW=seen_THW,
        ends_T2C=np.stack([first_TC, first_TC + slope_TC], axis=1),
        error=float((error_THW * weight).sum() / max(1.0, weight.sum())),
    )


def _find_checks(frames_THWC: Array, seen_THW: Array) -> tuple[Array, Array]:
    """T H W: checks (0 and 1) where they correlate best, and where no edge of theirs is near."""
    at = np.arange(SIZE) + 0.5
    across_P = np.arange(0, 2 * CHECK, 1 / _PHASES)
    down_P = np.arange(CHECK)  # the other half of the phases is the same with a shift across
    across_PW = checks(at + across_P[:, None]).astype(np.float32)
    down_PH = checks(at + down_P[:, None]).astype(np.float32)
    total = seen_THW.sum(axis=(1, 2)) + 1e-6
    mean_TC = np.einsum("thw,thwc->tc", seen_THW.astype(np.float32), frames_THWC) / total[:, None]
    off_TCHW = np.moveaxis((frames_THWC - mean_TC[:, None, None]) * seen_THW[..., None], -1, 1)
    found_TCPP = down_PH @ off_TCHW @ across_PW.T
    energy_TPP = np.square(found_TCPP).sum(axis=1)
    energy_TPP[found_TCPP.sum(axis=1) < 0] = 0  # of the pattern and its negative, 1 is brighter
    energy_TP = energy_TPP.reshape(len(frames_THWC), -1)
    down, across = np.divmod(energy_TP.argmax(axis=1), len(across_P))
    mix_THW = down_PH[down][:, :, None] * across_PW[across][:, None, :] * 0.5 + 0.5
    sharp_TW = _far_from_edges(at + across_P[across][:, None])
    sharp_TH = _far_from_edges(at + down_P[down][:, None])
    return mix_THW, sharp_TH[:, :, None] & sharp_TW[:, None, :]


def _far_from_edges(at: Array) -> Array:
    phase = np.mod(at, CHECK)
    far: Array = np.minimum(phase, CHECK - phase) > 2
    return far


def _blend(mix_THW: Array, first_TC: Array, last_TC: Array) -> Array:
    blend: Array = (
        first_TC[:, None, None] + mix_THW[..., None] * (last_TC - first_TC)[:, None, None]
    )
    return blend


def _tiles(off_THWC: Array, seen_THW: Array) -> Array:
    """Means over 3 x 3 tiles of what is seen; nan where that is little."""
    third = SIZE // 3
    cut = (len(off_THWC), 3, third, 3, third)
    weight = seen_THW.reshape(cut).astype(np.float32)
    total = weight.sum(axis=(2, 4))
    sums = np.einsum("tyhxw,tyhxwc->tyxc", weight, off_THWC.reshape(*cut, 3))
    few = total < third * third / 10
    tiles: Array = sums / np.where(few, np.nan, total)[..., None]
    return tiles


def _name(colour_C: Array) -> str:
    off = {
        name: float(np.linalg.norm(colour_C - np.array(rgb)))
        for name, rgb in GROUND_COLOURS.items()
    }
    name = min(off, key=lambda name: off[name])
    return name if off[name] < _KNOWN else ""
