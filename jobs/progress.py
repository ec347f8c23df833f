"""Progress of a render on the terminal: what is done, how much of it, how fast, how long yet."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

if TYPE_CHECKING:
    from ..pipeline.generator import Report

_NAMES = {"prompt": "reading the prompt", "denoise": "denoising", "decode": "decoding"}
_UNITS = {"denoise": "steps", "decode": "frames"}
_DAY_S = 86400.0


@contextmanager
def progress() -> "Iterator[Report]":
    """A report function that draws on stderr: bars on a terminal, a line per phase elsewhere."""
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield _lines()
        return
    bars = Progress(
        TextColumn("{task.description:18}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Speed(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),  # blocks in flight and the steps they have taken
        console=console,
        speed_estimate_period=_DAY_S,  # the default, 30 s, is shorter than a step of a large model
    )
    tasks = {}
    with bars:

        def report(what: str, done: int, total: int, note: str = "") -> None:
            if what not in tasks:
                unit = _UNITS.get(what, "")
                tasks[what] = bars.add_task(_NAMES[what], total=total or None, unit=unit, note="")
            bars.update(tasks[what], completed=done, note=note)

        yield report


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed, unit = task.finished_speed or task.speed, task.fields["unit"]
        if not speed or not unit:
            return Text("")
        return Text(f"{speed:.2f} {unit}/s" if speed >= 1 else f"{1 / speed:.1f} s/{unit[:-1]}")


def _lines() -> "Report":
    started: dict[str, float] = {}

    def report(what: str, done: int, total: int, note: str = "") -> None:
        start = started.setdefault(what, time.monotonic())
        if done == total:
            seconds = time.monotonic() - start
            unit = f" {total} {_UNITS[what]}" if what in _UNITS else ""
            print(f"{_NAMES[what]}{unit} in {seconds:.1f} s", file=sys.stderr)

    return report
