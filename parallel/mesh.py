"""The devices of a render as a grid with named dimensions: pure data.

cfg: branches of guidance, stage: places in a chain, ring and ulysses: the devices of one stage.
Numbers run as in torch's DeviceMesh, the last dimension first, so that the devices of a stage, and
of these the ones that exchange heads, are neighbours.
"""

import math
from dataclasses import dataclass

DIMS = ("cfg", "stage", "ring", "ulysses")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    cfg: int = 1
    stage: int = 1
    ring: int = 1
    ulysses: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(getattr(self, dim) for dim in DIMS)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def at(self, number: int) -> dict[str, int]:
        """Where a device stands on every dimension."""
        place = {}
        for dim in reversed(DIMS):
            number, place[dim] = divmod(number, getattr(self, dim))
        return place

    def number(self, **place: int) -> int:
        """Of the device that stands there; 0 on dimensions that are not given."""
        number = 0
        for dim in DIMS:
            assert 0 <= place.get(dim, 0) < getattr(self, dim), (dim, place)
            number = number * getattr(self, dim) + place.get(dim, 0)
        return number

    def line(self, number: int, dim: str) -> tuple[int, ...]:
        """The devices that differ from this one on one dimension alone, in order."""
        place = self.at(number)
        return tuple(self.number(**place | {dim: i}) for i in range(getattr(self, dim)))
