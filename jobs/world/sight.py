"""Things as they are seen in single frames: colour, shape, size, place, and how much of them shows.

T frames, H height, W width, C colours, N pixels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .backdrop import Backdrop, grown, like_ground
from .draw import coverage
from .runs import connected
from .words import SHAPES, SIZES, THING_COLOURS

Array = np.ndarray[Any, Any]

_COLOURS = (*THING_COLOURS,)
_RGB = np.array([*THING_COLOURS.values()], np.float32)
_STANDS_OUT = 30.0  # gray levels from the ground, at least
_MOST_OFF = 60.0  # from a thing's colour; the nearest two are 89 apart
_LEAST_CORE = 3  # pixels all of whose neighbours are of the thing: edges between things have none
_LEAST_AREA = 0.5  # of the smallest thing's, for a shape to be told
_MOST_UNLIKE = 0.5  # share of the area at which a shape has none of the names
_MOST_UNLIKE_HIDDEN = 0.2  # the same where a part may be hidden


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """A patch of one colour in one frame."""

    frame: int
    colour: str
    x: float
    y: float
    radius: float  # of the circle of its area
    rgb: tuple[float, float, float]  # mean of its inner pixels
    shape: str | None  # none: no shape we know, or not enough of it to see
    cut: bool  # by the frame's edge
    touching: bool  # another patch, which may hide a part of it

    @property
    def size(self) -> str:
        return min(SIZES, key=lambda size: abs(np.log(self.radius / SIZES[size])))

    @property
    def plain(self) -> bool:
        """Whether all of it surely shows."""
        return not self.cut and not self.touching


def sightings(frames_THWC: Array, backdrop: Backdrop) -> list[list[Sighting]]:
    """All that is seen, frame by frame."""
    label_THW = _labels(frames_THWC, backdrop.picture_THWC)
    part_THW = connected(label_THW)
    count = int(part_THW.max()) + 1
    core = np.bincount(part_THW[_inside(part_THW)], minlength=count)
    found: list[list[Sighting]] = [[] for _ in frames_THWC]
    boxes = _boxes(part_THW, count)
    real_THW = (core >= _LEAST_CORE)[part_THW] & (part_THW > 0)
    for number in np.flatnonzero(core[1:] >= _LEAST_CORE) + 1:
        frame, top, bottom, left, right = boxes[number]
        rows = slice(max(0, top - 3), bottom + 4)
        columns = slice(max(0, left - 3), right + 4)
        part_HW = part_THW[frame, rows, columns]
        found[frame].append(
            _look(
                frame,
                frames_THWC[frame, rows, columns].astype(np.float32),
                backdrop.picture_THWC[frame, rows, columns].astype(np.float32),
                mine_HW=part_HW == number,
                others_HW=real_THW[frame, rows, columns] & (part_HW != number),
                colour=int(label_THW[frame][part_THW[frame] == number][0]) - 1,
                corner=(columns.start, rows.start),
                cut=top == 0
                or left == 0
                or bottom == label_THW.shape[1] - 1
                or right == label_THW.shape[2] - 1,
            )
        )
    return found


def _labels(frames_THWC: Array, ground_THWC: Array) -> Array:
    """T H W: 1 + the colour that pixels are more than half of, mixed with the ground; else 0."""
    label_THW = np.zeros(frames_THWC.shape[:3], np.uint8)
    off_THWC = frames_THWC.astype(np.int16) - ground_THWC
    out_THW = np.square(off_THWC.astype(np.int32)).sum(axis=-1) > _STANDS_OUT**2
    pixels_NC = frames_THWC[out_THW].astype(np.float32)
    ground_NC = ground_THWC[out_THW].astype(np.float32)
    best_N, colour_N = np.full(len(pixels_NC), _MOST_OFF, np.float32), np.zeros(len(pixels_NC), int)
    for number, rgb in enumerate(_RGB):
        share_N = _share(pixels_NC, ground_NC, rgb)
        mixed_NC = ground_NC + share_N[:, None] * (rgb - ground_NC)
        off_N = np.linalg.norm(pixels_NC - mixed_NC, axis=-1)
        better_N = (share_N > 0.5) & (off_N < best_N)
        best_N, colour_N = (
            np.where(better_N, off_N, best_N),
            np.where(better_N, number + 1, colour_N),
        )
    label_THW[out_THW] = np.where(best_N < like_ground(pixels_NC), colour_N, 0)
    return label_THW


def _share(pixels: Array, ground: Array, rgb: Array) -> Array:
    """How much of a thing's colour is mixed into the ground, 0 to 1."""
    way = rgb - ground
    share: Array = ((pixels - ground) * way).sum(axis=-1) / np.square(way).sum(axis=-1)
    return np.clip(share, 0, 1)


def _inside(part_THW: Array) -> Array:
    """Pixels whose four neighbours are of the same part."""
    inside_THW = np.zeros(part_THW.shape, bool)
    middle = part_THW[:, 1:-1, 1:-1]
    inside_THW[:, 1:-1, 1:-1] = (
        (middle > 0)
        & (part_THW[:, :-2, 1:-1] == middle)
        & (part_THW[:, 2:, 1:-1] == middle)
        & (part_THW[:, 1:-1, :-2] == middle)
        & (part_THW[:, 1:-1, 2:] == middle)
    )
    return inside_THW


def _boxes(part_THW: Array, count: int) -> list[tuple[int, int, int, int, int]]:
    """Frame, top, bottom, left and right of every part."""
    t, y, x = np.nonzero(part_THW)
    part_N = part_THW[t, y, x]
    low = np.full((count, 3), np.iinfo(np.int64).max)
    high = np.zeros((count, 3), np.int64)
    for axis, at in enumerate((t, y, x)):
        np.minimum.at(low[:, axis], part_N, at)
        np.maximum.at(high[:, axis], part_N, at)
    return [
        (int(a[0]), int(a[1]), int(b[1]), int(a[2]), int(b[2]))
        for a, b in zip(low, high, strict=True)
    ]


def _look(
    frame: int,
    pixels_HWC: Array,
    ground_HWC: Array,
    *,
    mine_HW: Array,
    others_HW: Array,
    colour: int,
    corner: tuple[int, int],
    cut: bool,
) -> Sighting:
    share_HW = _share(pixels_HWC, ground_HWC, _RGB[colour])
    share_HW = np.where(grown(mine_HW, 1) & ~others_HW, share_HW, 0)
    area = float(share_HW.sum())
    y_H, x_W = (np.arange(side) + 0.5 for side in share_HW.shape)
    x, y = float(share_HW.sum(axis=0) @ x_W) / area, float(share_HW.sum(axis=1) @ y_H) / area
    radius = float(np.sqrt(area / np.pi))
    touching = bool((grown(mine_HW, 2) & others_HW).any())
    inner_HW = mine_HW & (share_HW > 0.98)
    rgb_C = pixels_HWC[inner_HW if inner_HW.any() else mine_HW].mean(axis=0)
    shape = None
    if area > _LEAST_AREA * np.pi * min(SIZES.values()) ** 2:
        most = _MOST_UNLIKE_HIDDEN if cut or touching else _MOST_UNLIKE
        shape = _shape(share_HW, radius, x_W - x, y_H - y, most)
    return Sighting(
        frame=frame,
        colour=_COLOURS[colour],
        x=x + corner[0],
        y=y + corner[1],
        radius=radius,
        rgb=(float(rgb_C[0]), float(rgb_C[1]), float(rgb_C[2])),
        shape=shape,
        cut=cut,
        touching=touching,
    )


def _shape(share_HW: Array, radius: float, x_W: Array, y_H: Array, most: float) -> str | None:
    """The shape of the same area and centre that differs least, if in less than `most` of it."""
    sharp_HW = np.clip(2 * share_HW - 0.5, 0, 1)  # soft edges are every shape's
    grid = x_W[None], y_H[:, None]
    area = np.pi * radius**2
    unlike = {
        shape: float(
            np.abs(sharp_HW - np.clip(2 * coverage(shape, radius, *grid) - 0.5, 0, 1)).sum()
        )
        / area
        for shape in SHAPES
    }
    shape = min(unlike, key=lambda shape: unlike[shape])
    return shape if unlike[shape] < most else None
