"""How a batch stands: a table that is drawn anew on a terminal, a line per ended item elsewhere."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batch import Item

_ROWS = 20  # those that are being made, and the last that failed


@contextmanager
def shown(
    progress: "bool | Callable[[Item], object]", items: "Sequence[Item]"
) -> "Iterator[Callable[[Item], object]]":
    """What to call whenever an item has changed."""
    if callable(progress):
        yield progress
    elif not progress:
        yield lambda item: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.live import Live

        with Live(console=Console(file=sys.stderr), get_renderable=lambda: _table(items)) as live:
            yield lambda item: live.refresh() if item.state in ("done", "failed") else None
    else:
        yield lambda item: _line(item, items)


def _line(item: "Item", items: "Sequence[Item]") -> None:
    if item.state in ("done", "failed"):
        ended = sum(one.state in ("done", "failed") for one in items)
        said = f": {item.message}" if item.message else ""
        print(f"[{ended}/{len(items)}] {item.name} {item.state}{said}", file=sys.stderr)


def _table(items: "Sequence[Item]") -> Any:
    from rich.table import Table

    counts = {state: sum(item.state == state for item in items) for state in ("done", "failed")}
    total = len(items)
    table = Table(
        title=f"{counts['done']} of {total} done, {counts['failed']} failed", title_justify="left"
    )
    for heading in ("item", "state", "", "prompt"):
        table.add_column(heading, no_wrap=True, overflow="ellipsis")
    moving = [item for item in items if item.state not in ("waiting", "done")]
    for item in moving[-_ROWS:]:
        note = item.message or item.prompt
        table.add_row(item.name, item.state, f"{item.fraction:4.0%}", note)
    return table
