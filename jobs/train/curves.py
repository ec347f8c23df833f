"""The log as a picture: one plot for each figure over steps, in PNG."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

_WIDTH, _HEIGHT, _LEFT, _MARGIN, _HEAD = 900, 220, 90, 24, 34
_PAPER, _INK, _FAINT, _GRID = (255, 255, 255), (30, 30, 30), (190, 205, 230), (225, 225, 225)
_LINE = (30, 80, 170)
_SMOOTH = 0.9  # share of the past in the dark line
_SKIPPED = ("step", "time_s")


def draw_curves(lines: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Pale: as logged; dark: smoothed. The axis is logarithmic where values span a decade."""
    names = [name for name in lines[-1] if name not in _SKIPPED] if lines else []
    height = _HEAD + len(names) * _HEIGHT + _MARGIN
    image = Image.new("RGB", (_WIDTH, height), _PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((_MARGIN, 10), title, _INK, ImageFont.load_default(18))
    for row, name in enumerate(names):
        points = [(line["step"], line[name]) for line in lines if _can_draw(line.get(name))]
        _plot(draw, name, points, _HEAD + row * _HEIGHT)
    image.save(path, format="PNG")


def _plot(
    draw: ImageDraw.ImageDraw, name: str, points: Sequence[tuple[int, float]], top: int
) -> None:
    upper, lower = top + 28, top + _HEIGHT - 26
    font = ImageFont.load_default(14)
    draw.text((_LEFT, top + 6), name, _INK, font)
    if not points:
        return
    values = [value for _, value in points]
    logarithmic = min(values) > 0 and max(values) > 10 * min(values)
    scaled = [math.log10(value) if logarithmic else value for value in values]
    low, high = min(scaled), max(scaled)
    spread = (high - low) or 1.0
    last = max(step for step, _ in points)
    for share in (0.0, 0.5, 1.0):
        y = round(lower - share * (lower - upper))
        value = low + share * spread
        draw.line((_LEFT, y, _WIDTH - _MARGIN, y), _GRID)
        shown = f"{10**value if logarithmic else value:.3g}"
        draw.text((_LEFT - 8, y), shown, _INK, font, anchor="rm")
        x = round(_LEFT + share * (_WIDTH - _MARGIN - _LEFT))
        draw.text((x, lower + 6), f"{share * last:.0f}", _INK, font, anchor="ma")

    def place(step: int, value: float) -> tuple[float, float]:
        across = step / max(1, last) * (_WIDTH - _MARGIN - _LEFT)
        return _LEFT + across, lower - (value - low) / spread * (lower - upper)

    raw = [place(step, value) for (step, _), value in zip(points, scaled, strict=True)]
    smooth, running = [], scaled[0]
    for (step, _), value in zip(points, scaled, strict=True):
        running = _SMOOTH * running + (1 - _SMOOTH) * value
        smooth.append(place(step, running))
    draw.line(raw, _FAINT, 1)
    draw.line(smooth, _LINE, 2)


def _can_draw(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
