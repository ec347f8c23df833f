"""What the world is made of: the names a caption uses, and what they mean in pixels."""

from dataclasses import dataclass
from types import MappingProxyType

SIZE = 96  # pixels a side of a frame
FPS = 16

# Saturated things over dull backdrops: no thing has the colour of any ground.
THING_COLOURS = MappingProxyType(
    {
        "red": (215, 35, 35),
        "orange": (245, 135, 15),
        "yellow": (240, 220, 30),
        "green": (35, 165, 60),
        "cyan": (40, 200, 225),
        "blue": (40, 85, 225),
        "purple": (140, 45, 185),
        "pink": (250, 120, 190),
    }
)
GROUND_COLOURS = MappingProxyType(
    {
        "black": (15, 15, 15),
        "gray": (115, 115, 115),
        "white": (240, 240, 240),
        "brown": (105, 70, 45),
        "navy": (15, 25, 85),
        "beige": (225, 205, 165),
    }
)
SHAPES = ("circle", "square", "triangle", "star", "cross")
# Radius of the circle of the same area: every shape of one size covers as many pixels.
SIZES = MappingProxyType({"small": 9.0, "medium": 12.0, "large": 16.0})
# Pixels a frame.
SPEEDS = MappingProxyType({"slowly": 0.5, "steadily": 1.25, "quickly": 2.5})
PAN_SPEED = 0.75
CHECK = 16  # pixels a side of a check


@dataclass(frozen=True)
class Heading:
    """A way to go; y grows downward."""

    x: float
    y: float
    words: str


_DIAGONAL = 2**-0.5
# A thing that drifts leaves on one side and enters again on the other, for ever in one direction.
DRIFTS = (
    Heading(1, 0, "to the right"),
    Heading(-1, 0, "to the left"),
    Heading(0, -1, "upward"),
    Heading(0, 1, "downward"),
    Heading(_DIAGONAL, -_DIAGONAL, "to the upper right"),
    Heading(-_DIAGONAL, -_DIAGONAL, "to the upper left"),
    Heading(_DIAGONAL, _DIAGONAL, "to the lower right"),
    Heading(-_DIAGONAL, _DIAGONAL, "to the lower left"),
)
# A thing that bounces turns at the edges, so its words hold at any moment too.
BOUNCES = (
    Heading(1, 0, "left and right"),
    Heading(0, 1, "up and down"),
    Heading(_DIAGONAL, _DIAGONAL, "diagonally"),
)
PANS = (Heading(1, 0, "right"), Heading(-1, 0, "left"))
