"""A contact sheet of the clips, and a plot of the table."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..world.words import SIZE
from .records import SHOWN, Records, strip_path
from .table import Row, curve

_PAPER, _INK, _FAINT = (255, 255, 255), (30, 30, 30), (200, 200, 200)
_LINES = ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189))
_MOST_PROMPTS = 8  # of a sheet
_BARS = ("prompt", "identity", "identity_last", "smoothness", "speed", "direction")
_WIDTH, _HEIGHT, _LEFT, _TOP = 1200, 300, 70, 50  # of a panel, and where its axes cross


def sheet(records: Records, folder: Path, path: Path) -> None:
    """Frames from first to last of the first prompts, a row a setting under each prompt."""
    numbers = sorted({number for _, number in records})[:_MOST_PROMPTS]
    settings = dict.fromkeys(name for name, _ in records)
    line, font = 22, ImageFont.load_default(14)
    shown = [records[name, number] for number in numbers for name in settings]
    strips = [(record, _strip(strip_path(record, folder))) for record in shown]
    width = max(strip.width for _, strip in strips)
    height = sum(strip.height + line for _, strip in strips) + line * len(numbers)
    image = Image.new("RGB", (width, height), _PAPER)
    draw, top, last = ImageDraw.Draw(image), 0, -1
    for record, strip in strips:
        if record.number != last:
            draw.text((6, top + 2), record.prompt, _INK, font)
            top, last = top + line, record.number
        draw.text((6, top + 2), record.setting, _INK, font)
        image.paste(strip, (0, top + line))
        top += line + strip.height
    image.save(path, format="PNG")


def _strip(path: Path) -> Image.Image:
    """Blank where only the scores are kept: a clip is not rendered again for its looks."""
    try:
        with Image.open(path) as strip:
            return strip.copy()
    except OSError:
        return Image.new("RGB", (SHOWN * SIZE, SIZE), _FAINT)


def plot(table: Sequence[Row], records: Records, path: Path) -> None:
    """Identity over the length of the clips, and the shares that are best at 1."""
    legend = 24 * len(table)
    image = Image.new("RGB", (_WIDTH, 2 * (_HEIGHT + 2 * _TOP) + legend), _PAPER)
    draw = ImageDraw.Draw(image)
    bottom = _axes(draw, 0, "identity kept, from the first frame to the last")
    for number, row in enumerate(table):
        shares = curve(records, str(row["setting"]))
        step = (_WIDTH - _LEFT - 30) / len(shares)
        points = [
            (_LEFT + (i + 0.5) * step, bottom - share * _HEIGHT)
            for i, share in enumerate(shares)
            if share is not None
        ]
        draw.line(points, _colour(number), width=3)
    bottom = _axes(draw, _HEIGHT + 2 * _TOP, "means over the prompts")
    _bars(draw, table, bottom)
    for number, row in enumerate(table):
        top = 2 * (_HEIGHT + 2 * _TOP) + 24 * number
        draw.rectangle((_LEFT, top, _LEFT + 16, top + 14), _colour(number))
        draw.text((_LEFT + 26, top - 1), str(row["setting"]), _INK, ImageFont.load_default(15))
    image.save(path, format="PNG")


def _axes(draw: ImageDraw.ImageDraw, top: int, title: str) -> int:
    """Lines at each fifth; where 0 is."""
    bottom = top + _TOP + _HEIGHT
    draw.text((_LEFT, top + 14), title, _INK, ImageFont.load_default(18))
    for fifth in range(6):
        y = bottom - _HEIGHT * fifth // 5
        draw.line((_LEFT, y, _WIDTH - 30, y), _FAINT)
        draw.text(
            (_LEFT - 10, y), f"{fifth / 5:.1f}", _INK, ImageFont.load_default(14), anchor="rm"
        )
    return bottom


def _bars(draw: ImageDraw.ImageDraw, table: Sequence[Row], bottom: int) -> None:
    group = (_WIDTH - _LEFT - 30) / len(_BARS)
    wide = 0.8 * group / len(table)
    for i, name in enumerate(_BARS):
        left = _LEFT + (i + 0.1) * group
        for number, row in enumerate(table):
            value = row[name]
            if isinstance(value, float):
                x = left + number * wide
                box = (x, bottom - value * _HEIGHT, x + wide - 2, bottom)
                draw.rectangle(box, _colour(number))
        middle = (left + 0.4 * group, bottom + 8)
        draw.text(middle, name.replace("_", " "), _INK, ImageFont.load_default(15), anchor="ma")


def _colour(number: int) -> tuple[int, int, int]:
    return _LINES[number % len(_LINES)]
