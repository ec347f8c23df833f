"""A picture of a timeline: a row per stage, a colour per block, brighter from step to step."""

import colorsys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..parallel.tasks import Task
from .timeline import Timeline

_ROW, _LEFT, _TOP, _BOTTOM = 44, 84, 64, 88
_MIN_WIDTH, _MAX_WIDTH, _TASK = 1600, 12_000, 5  # pixels; of a task, while the most is not reached
_PAPER, _IDLE, _INK, _FAINT = (255, 255, 255), (228, 228, 228), (30, 30, 30), (120, 120, 120)
_GOLDEN = 0.381966  # of the colour circle: neighbours never look alike


def plot(timeline: Timeline, path: Path, title: str, unit: str) -> None:
    """Write a PNG. `unit` names what the times are in: s, or slots."""
    total = timeline.stops[-1][-1]
    width = min(_MAX_WIDTH, max(_MIN_WIDTH, _LEFT + _TASK * len(timeline.tasks)))
    height = _TOP + _ROW * timeline.num_devices + _BOTTOM
    image = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(image)
    scale = (width - _LEFT - 24) / total
    draw.text((_LEFT, 18), title, _INK, ImageFont.load_default(22))
    for stage in range(timeline.num_devices):
        top = _TOP + stage * _ROW
        branch, number = divmod(stage, timeline.num_stages)  # "other": the unconditional chain
        name = f"{('stage', 'other')[branch]} {number}"
        draw.text((14, top + 9), name, _INK, ImageFont.load_default(16))
        draw.rectangle((_LEFT, top, _LEFT + round(total * scale), top + _ROW - 7), _IDLE)
        for i, task in enumerate(timeline.tasks):
            for visit in timeline.visits[i][stage]:
                left, right = (_LEFT + round(time * scale) for time in (visit.start, visit.stop))
                _draw_task(draw, task, (left, top, right, top + _ROW - 6), timeline.schedule.steps)
    bottom = _TOP + _ROW * timeline.num_devices
    _axis(draw, total, scale, bottom, unit)
    _legend(draw, bottom + 46, timeline)
    image.save(path, format="PNG")


def _draw_task(
    draw: ImageDraw.ImageDraw, task: Task, box: tuple[int, int, int, int], steps: int
) -> None:
    """A stripe per block that is moved, the oldest on top; a frame for a pass that moves none."""
    left, top, right, bottom = box
    right -= 2 if right - left > 3 else 1  # a gap between neighbours, where there is room
    if right < left:
        return
    if task.commit:
        shade = _shade(task.parts[0].block, steps - 1, steps)
        draw.rectangle((left, top, right, bottom - 1), _PAPER, shade, width=2)
        return
    stripe = (bottom - top) / len(task.written)
    for i, part in enumerate(task.written):
        upper, lower = top + round(i * stripe), top + round((i + 1) * stripe) - 1
        if lower >= upper:
            draw.rectangle((left, upper, right, lower), _shade(part.block, part.step, steps))


def _shade(block: int, step: int, steps: int) -> tuple[int, int, int]:
    brightness = 0.35 + 0.6 * step / max(1, steps - 1)
    red, green, blue = colorsys.hsv_to_rgb(block * _GOLDEN % 1, 0.75, brightness)
    return round(255 * red), round(255 * green), round(255 * blue)


def _axis(draw: ImageDraw.ImageDraw, total: float, scale: float, top: int, unit: str) -> None:
    font, step = ImageFont.load_default(15), _round_step(150 / scale)
    count = 0
    while count * step <= total:
        x = _LEFT + count * step * scale
        draw.line((x, top, x, top + 6), _FAINT)
        draw.text((x, top + 9), f"{count * step:g}", _FAINT, font, anchor="ma")
        count += 1
    draw.text((14, top + 9), unit, _FAINT, font)


def _round_step(least: float) -> float:
    """1, 2 or 5 times a power of ten."""
    power = 1.0
    while power > least:
        power /= 10
    while power * 10 <= least:
        power *= 10
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least)


def _legend(draw: ImageDraw.ImageDraw, top: int, timeline: Timeline) -> None:
    """The first blocks, each from its first step to its last."""
    font, steps = ImageFont.load_default(15), timeline.schedule.steps
    x = _LEFT
    for block in range(min(8, timeline.schedule.num_blocks or 8)):
        draw.text((x, top), f"block {block}", _INK, font)
        for i in range(40):
            colour = _shade(block, round(i / 39 * (steps - 1)), steps)
            draw.line((x + 70 + i, top + 2, x + 70 + i, top + 18), colour)
        x += 134
    draw.text((x + 10, top), "dark: noise, bright: clean", _FAINT, font)
    draw.rectangle((x + 222, top + 2, x + 242, top + 18), _IDLE)
    draw.text((x + 250, top), "idle", _FAINT, font)
    if timeline.schedule.commits:
        draw.rectangle((x + 300, top + 2, x + 320, top + 18), _PAPER, _FAINT, width=2)
        draw.text((x + 328, top), "clean pass", _FAINT, font)
