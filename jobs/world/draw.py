"""Scenes to pictures, with smooth edges; and which pixels belong to which thing.

T frames, H height, W width, C colours.
"""

from typing import Any

import numpy as np

from .scene import REACH, STAR_WAIST, Ground, Scene, Thing, centres, extent
from .words import CHECK, GROUND_COLOURS, SIZE, THING_COLOURS

Array = np.ndarray[Any, Any]


def draw(scene: Scene, first: int, count: int) -> Array:
    """Frames `first` to `first + count` as T H W C bytes."""
    return draw_with_owners(scene, first, count)[0]


def draw_with_owners(scene: Scene, first: int, count: int) -> tuple[Array, Array]:
    """The frames, and T H W: the number of the thing that each pixel shows, -1 for the ground."""
    frames = np.arange(first, first + count)
    picture_THWC = _ground(scene, frames)
    owner_THW = np.full((count, SIZE, SIZE), -1, np.int8)
    paths = centres(scene, frames)
    for number, thing in enumerate(scene.things):
        for t in range(count):
            _paint(picture_THWC[t], owner_THW[t], thing, number, paths[t, number])
    return np.rint(picture_THWC).astype(np.uint8), owner_THW


def coverage(shape: str, radius: float, x: Array, y: Array) -> Array:
    """How much of the pixels at (x, y) from the centre the shape covers, 0 to 1."""
    covered: Array = np.clip(0.5 - _distance(shape, radius, x, y), 0.0, 1.0)
    return covered


def _distance(shape: str, radius: float, x: Array, y: Array) -> Array:
    """Pixels outside the edge, negative inside; exact along straight edges."""
    reach = REACH[shape] * radius
    distance: Array
    if shape == "circle":
        distance = np.hypot(x, y) - reach
    elif shape == "square":
        distance = np.maximum(np.abs(x), np.abs(y)) - reach
    elif shape == "cross":
        along, across = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
        distance = np.maximum(along - reach, across - reach / 3)
    elif shape == "triangle":  # upright
        inner = reach / 2
        distance = np.maximum(y - inner, np.abs(x) * np.sqrt(0.75) - y / 2 - inner)
    else:
        distance = _star_distance(reach, x, y)
    return distance


def _star_distance(reach: float, x: Array, y: Array) -> Array:
    # fold the plane onto half a spike: its edge runs from the tip to the waist
    turn = np.pi / 5
    angle = np.abs(np.mod(np.arctan2(x, -y) + turn, 2 * turn) - turn)
    along, across = np.hypot(x, y) * np.cos(angle), np.hypot(x, y) * np.sin(angle)
    tip = np.array([reach, 0.0])
    waist = STAR_WAIST * reach * np.array([np.cos(turn), np.sin(turn)])
    edge = waist - tip
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    distance: Array = (along - tip[0]) * normal[0] + (across - tip[1]) * normal[1]
    return distance


def _paint(picture_HWC: Array, owner_HW: Array, thing: Thing, number: int, centre: Array) -> None:
    low = np.clip(np.floor(centre - extent(thing) - 1), 0, SIZE).astype(int)
    high = np.clip(np.ceil(centre + extent(thing) + 1), 0, SIZE).astype(int)
    if (low >= high).any():
        return  # out of sight
    rows, columns = slice(low[1], high[1]), slice(low[0], high[0])
    x = np.arange(low[0], high[0]) + 0.5 - centre[0]
    y = np.arange(low[1], high[1]) + 0.5 - centre[1]
    cover = coverage(thing.shape, thing.radius, x[None], y[:, None])
    colour = np.array(THING_COLOURS[thing.colour], np.float32)
    patch = picture_HWC[rows, columns]
    patch += cover[..., None].astype(np.float32) * (colour - patch)
    owner_HW[rows, columns][cover > 0.5] = number


def _ground(scene: Scene, frames: Array) -> Array:
    """T H W C floats: the backdrop as the camera passes over it."""
    shift = frames[:, None] * scene.pan_velocity
    x_TW = np.arange(SIZE) + 0.5 + shift[:, :1]
    y_TH = np.arange(SIZE) + 0.5 + shift[:, 1:]
    first, last = (_rgb(scene.ground, end) for end in (0, -1))
    if scene.ground.kind == "checkered":
        mix_THW = checks(y_TH)[:, :, None] * checks(x_TW)[:, None, :] * 0.5 + 0.5
    elif scene.ground.kind == "gradient":
        along = x_TW[:, None, :] if scene.ground.across else y_TH[:, :, None]
        # there and back, so that a camera may pan over it for ever
        ramp = 1 - np.abs(np.mod(along / SIZE, 2) - 1)
        mix_THW = np.broadcast_to(ramp, (len(frames), SIZE, SIZE))
    else:
        mix_THW = np.zeros((len(frames), SIZE, SIZE))
    ground_THWC: Array = first + mix_THW[..., None].astype(np.float32) * (last - first)
    return ground_THWC.astype(np.float32)


def checks(at: Array) -> Array:
    """+1 and -1 in turn, with edges one pixel wide."""
    phase = np.mod(at, 2 * CHECK)
    edge = np.minimum(np.minimum(phase, 2 * CHECK - phase), np.abs(phase - CHECK))
    sign = np.where(phase < CHECK, 1.0, -1.0)
    soft: Array = sign * np.clip(2 * edge, 0.0, 1.0)
    return soft


def _rgb(ground: Ground, end: int) -> Array:
    return np.array(GROUND_COLOURS[ground.colours[end]], np.float32)
