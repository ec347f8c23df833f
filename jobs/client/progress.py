"""A bar for one render that is waited for."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .async_client import RenderInfo


@contextmanager
def shown(
    progress: "bool | Callable[[RenderInfo], object]",
) -> "Iterator[Callable[[RenderInfo], object]]":
    """What to call with each account of it; on a terminal a bar is drawn on stderr."""
    if callable(progress):
        yield progress
        return
    if not progress or not sys.stderr.isatty():
        yield lambda info: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (
        TextColumn("{task.description:10}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(file=sys.stderr)) as bars:
        task = bars.add_task("queued", total=1.0, note="")

        def show(info: "RenderInfo") -> None:
            left = f"{info.eta_s:.0f} s to go" if info.eta_s is not None else ""
            note = f"{info.frames_done} of {info.frames} frames  {left}"
            bars.update(task, description=info.status, completed=info.fraction, note=note)

        yield show
