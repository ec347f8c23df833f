"""Connected parts of equal labels in many pictures at once: runs of a row, joined to those below.

T frames, H height, W width, N runs.
"""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def connected(label_THW: Array) -> Array:
    """T H W: 0 where the label is 0; elsewhere the number, from 1, of the part a pixel is in."""
    frames, height, width = label_THW.shape
    rows_RW = label_THW.reshape(frames * height, width)
    changes_RW = np.ones((frames * height, width), bool)
    changes_RW[:, 1:] = rows_RW[:, 1:] != rows_RW[:, :-1]
    run_RW = np.cumsum(changes_RW).reshape(rows_RW.shape) - 1
    run_THW = run_RW.reshape(label_THW.shape)
    same = (label_THW[:, 1:] == label_THW[:, :-1]) & (label_THW[:, 1:] > 0)
    count = int(run_RW.max()) + 1
    # as one number, because sorting rows of two is many times slower
    pairs = np.unique(run_THW[:, :-1][same] * count + run_THW[:, 1:][same])
    part_N = _join(count, np.stack(np.divmod(pairs, count), axis=1))
    part_THW = part_N[run_THW]
    kept = np.unique(part_THW[label_THW > 0])
    number_N = np.zeros(len(part_N), np.int64)
    number_N[kept] = np.arange(1, len(kept) + 1)
    numbered: Array = np.where(label_THW > 0, number_N[part_THW], 0)
    return numbered


def _join(count: int, pairs: Array) -> Array:
    """The least member of the part that each of `count` is in."""
    part_N = np.arange(count)
    while True:
        least = np.minimum(part_N[pairs[:, 0]], part_N[pairs[:, 1]])
        before = part_N.copy()
        # onto the members' representatives too, so that whole parts move at once
        for column in (0, 1):
            np.minimum.at(part_N, before[pairs[:, column]], least)
            np.minimum.at(part_N, pairs[:, column], least)
        part_N = part_N[part_N]
        if (part_N == before).all():
            return part_N
